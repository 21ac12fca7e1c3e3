"""Masks under which every row looks at something, and those that may hide a whole row."""

from __future__ import annotations

import openvino as ov
import openvino_support as support
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openvino_backend.backend import OpenVINOBackend
from openvino_backend.options import OpenVINOOptions

PLACES = torch.export.Dim("places", min=1, max=64)
ROWS = torch.export.Dim("rows", min=1, max=64)


class Attention(nn.Module):
    """Rows that look at the columns that ``mask`` tells for so many of both."""

    def __init__(self, mask) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        seen = self.mask(query.shape[-2], key.shape[-2])
        return F.scaled_dot_product_attention(query, key, key + 1, seen[None, None])


def causal(rows: int, columns: int) -> Tensor:
    return torch.arange(columns)[None] <= torch.arange(rows)[:, None]


def causal_after_three(rows: int, columns: int) -> Tensor:
    return torch.arange(columns)[None] <= torch.arange(rows)[:, None] + 3


def nothing_for_the_first(rows: int, columns: int) -> Tensor:
    return torch.arange(columns)[None] <= torch.arange(rows)[:, None] - 1


def columns_begin_late(rows: int, columns: int) -> Tensor:
    return torch.arange(columns)[None] + 2 <= torch.arange(rows)[:, None]


def only_what_comes_later(rows: int, columns: int) -> Tensor:
    return torch.arange(rows)[:, None] <= torch.arange(columns)[None] - 2


def rows_backwards(rows: int, columns: int) -> Tensor:
    return torch.arange(columns)[None] <= torch.arange(0, -rows, -1)[:, None] + 1


def exported(mask, inputs, path, shapes=None):
    model = Attention(mask).eval()
    return model, OpenVINOBackend(OpenVINOOptions()).export(model, inputs, path, shapes)


def inputs_of(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(rows)
    return torch.randn(1, 2, rows, 8), torch.randn(1, 2, columns, 8)


def selects(path) -> int:
    nodes = ov.Core().read_model(path).get_ops()
    return sum(node.get_type_name() == "Select" for node in nodes)


@pytest.mark.parametrize("mask", [causal, causal_after_three])
def test_where_every_row_looks_at_something_only_the_mask_is_selected(mask, tmp_path):
    shapes = ({2: PLACES}, {2: PLACES})
    model, path = exported(mask, inputs_of(4, 4), tmp_path / "m.xml", shapes)
    assert selects(path) == 1
    for size in (1, 4, 7):
        inputs = inputs_of(size, size)
        assert support.difference(support.run_file(path, *inputs), [model(*inputs)]) < 1e-5


@pytest.mark.parametrize(
    "mask",
    [nothing_for_the_first, columns_begin_late, only_what_comes_later, rows_backwards],
)
def test_rows_that_look_at_nothing_are_zero(mask, tmp_path):
    shapes = ({2: PLACES}, {2: PLACES})
    model, path = exported(mask, inputs_of(5, 5), tmp_path / "m.xml", shapes)
    assert selects(path) > 1
    for size in (1, 5, 7):
        inputs = inputs_of(size, size)
        wanted = model(*inputs)
        if size > 1:
            assert (wanted == 0).all(-1).any()  # there are such rows
        assert support.difference(support.run_file(path, *inputs), [wanted]) < 1e-5


def test_where_there_may_be_rows_without_columns_they_are_cared_for(tmp_path):
    """With as many columns as one likes, none among them, a causal mask may tell nothing."""
    shapes = ({2: ROWS}, {2: torch.export.Dim("columns", min=0, max=64)})
    model, path = exported(causal, inputs_of(3, 5), tmp_path / "m.xml", shapes)
    assert selects(path) > 1
    for columns in (1, 5):
        inputs = inputs_of(3, columns)
        assert support.difference(support.run_file(path, *inputs), [model(*inputs)]) < 1e-5


def test_a_view_in_its_own_shape_that_is_given_out_stays(tmp_path):
    class Same(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = x * 2
            return y, y.view(x.shape), y.view(x.shape) + 1

    x = torch.randn(3, 4)
    path = OpenVINOBackend(OpenVINOOptions()).export(Same(), (x,), tmp_path / "m.xml")
    assert support.difference(support.run_file(path, x), Same()(x)) == 0
