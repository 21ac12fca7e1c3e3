"""Files of models traced with one text, given several."""

from __future__ import annotations

import numpy as np
import openvino as ov
import openvino_support as support
import pytest
import torch
from openvino import opset16 as op
from torch import Tensor, nn
from torch.nn import functional

from openvino_backend.batches import leave_batches
from palette_core import PalettizationSpec

X = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1))


class Heads(nn.Module):
    """Cuts rows into heads and puts them together again, as attention does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        batch, rows, _ = x.shape
        heads = self.first(x).view(batch, rows, 4, 6).transpose(1, 2)
        found = functional.scaled_dot_product_attention(heads, heads, heads)
        return self.second(found.transpose(1, 2).reshape(batch, rows, 24))


def test_attention_of_one_text_can_be_made_that_of_several(tmp_path):
    model = Heads().eval()
    rows = torch.export.Dim("rows", max=64)
    path = support.exported(
        model,
        (X,),
        tmp_path / "model.xml",
        PalettizationSpec(n_bits=8),
        dynamic_shapes=({1: rows},),
    )
    several = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = model(several)
        assert support.difference(support.run_file(path, X), [model(X)]) <= 1e-5
    read = ov.Core().read_model(path)
    read.reshape({0: [3, 7, 16]})
    compiled = ov.Core().compile_model(read, "CPU", support.EXACT)
    assert support.difference([compiled([several.numpy()])[0]], [wanted]) <= 1e-5


@pytest.mark.parametrize(
    ("given", "sizes", "copies"),
    [([1, 0, 6], [1, 3, 0], False), ([1, 4, 6], [1, 0, 2, 3], True), ([1, 4], [-1, 4], False)],
)
def test_reshapes_keep_their_shapes(given, sizes, copies):
    x = op.parameter(ov.PartialShape(given), ov.Type.f32)
    made = op.reshape(x, np.array(sizes, np.int64), copies)
    model = ov.Model([op.result(op.relu(made))], [x])
    before = model.outputs[0].get_partial_shape()
    leave_batches(model)
    model.validate_nodes_and_infer_types()
    assert model.outputs[0].get_partial_shape() == before
