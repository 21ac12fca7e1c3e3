"""Attention whose heads share keys and values, computed without copies of these."""

from __future__ import annotations

import openvino as ov
import pytest
import torch
import torch.nn.functional as F
from openvino_support import run_file
from torch import Tensor, nn

from openvino_backend.backend import OpenVINOBackend
from openvino_backend.options import OpenVINOOptions


class Shared(nn.Module):
    """Each head of keys and values repeated for ``times`` heads of queries, as models do."""

    def __init__(self, times: int, scale: float | None, axis: int = 2) -> None:
        super().__init__()
        self.times, self.scale, self.axis = times, scale, axis

    def forward(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
        repeated = [self._repeated(x) for x in (key, value)]
        return F.scaled_dot_product_attention(query, *repeated, seen, scale=self.scale)

    def _repeated(self, x: Tensor) -> Tensor:
        batch, groups, places, width = x.shape
        sizes = [batch, groups, places, width]
        sizes.insert(self.axis, self.times)
        return x.unsqueeze(self.axis).expand(sizes).reshape(batch, -1, places, width)


def inputs_of(times: int, batch: int = 2, masks: int = 1) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    groups, rows, places, width = 3, 4, 10, 8
    seen = torch.rand(batch, masks, rows, places) < 0.6
    seen[0, :, 1] = False  # a row that may look at nothing
    return (
        torch.randn(batch, groups * times, rows, width),
        torch.randn(batch, groups, places, width),
        torch.randn(batch, groups, places, width),
        seen,
    )


def kinds(path) -> list[str]:
    return [node.get_type_name() for node in ov.Core().read_model(path).get_ops()]


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("every_head", [False, True])
def test_shared_heads_are_not_copied(times, scale, every_head, tmp_path) -> None:
    inputs = inputs_of(times, masks=3 * times if every_head else 1)
    model = Shared(times, scale)
    path = OpenVINOBackend(OpenVINOOptions()).export(model, inputs, tmp_path / "m.xml")
    torch.testing.assert_close(torch.as_tensor(run_file(path, *inputs)[0]), model(*inputs))
    assert "ScaledDotProductAttention" not in kinds(path)


def test_rows_of_any_number(tmp_path) -> None:
    model, inputs = Shared(2, None), inputs_of(2)
    rows, batch = torch.export.Dim("rows", max=64), torch.export.Dim("batch", max=64)
    shapes = ({0: batch, 2: rows}, {0: batch}, {0: batch}, {0: batch, 2: rows})
    path = OpenVINOBackend(OpenVINOOptions()).export(model, inputs, tmp_path / "m.xml", shapes)
    assert "ScaledDotProductAttention" not in kinds(path)
    for n in (1, 3):
        given = [x[:1] for x in inputs]
        given[0], given[3] = given[0][:, :, :n], given[3][:, :, :n]
        torch.testing.assert_close(torch.as_tensor(run_file(path, *given)[0]), model(*given))


def test_heads_in_another_order_stay_as_they_are(tmp_path) -> None:
    """All heads in a row, and the row repeated: neighbours do not share then."""
    model, inputs = Shared(2, None, axis=1), inputs_of(2)
    path = OpenVINOBackend(OpenVINOOptions()).export(model, inputs, tmp_path / "m.xml")
    torch.testing.assert_close(torch.as_tensor(run_file(path, *inputs)[0]), model(*inputs))
    assert "ScaledDotProductAttention" in kinds(path)


@pytest.mark.parametrize("heads", [(), (3,), (2, 3)], ids=["none", "one axis", "two axes"])
def test_keys_that_nothing_repeats_stay_as_they_are(heads, tmp_path) -> None:
    class Plain(nn.Module):
        def forward(self, *given: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(*given)

    torch.manual_seed(0)
    inputs = (*(torch.randn(*heads, n, 8) for n in (4, 10, 10)), torch.randn(*heads, 4, 10))
    path = OpenVINOBackend(OpenVINOOptions()).export(Plain(), inputs, tmp_path / "m.xml")
    torch.testing.assert_close(torch.as_tensor(run_file(path, *inputs)[0]), Plain()(*inputs))
