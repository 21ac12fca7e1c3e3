"""Parts of concatenations whose values are known: coremltools by itself types them as integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mil_evaluator import run_package
from torch import Tensor, nn

from palette_core import KMeansPalettizer

PARTS = {
    "pieces where it was joined": lambda x, y: sum(x.split([4, 4], 1)) * y,
    "pieces across": lambda x, y: x.split([2, 6], 1)[1][:, :4] * y,
    "chunks": lambda x, y: x.chunk(2, 1)[1] * y,
    "a slice": lambda x, y: x[:, 4:] * y,
    "one column": lambda x, y: x[:, 5:6] * y,
    "one element": lambda x, y: x[:, 5, None] * y,
    "columns": lambda x, y: sum(x.unbind(1))[:, None] * y,
    "inner ones": lambda x, y: torch.cat([x, torch.ones(1, 4)], 1).split(4, 1)[1] * y,
    "of three": lambda x, y: torch.cat([x, y, x], 1).split([6, 4, 10], 1)[2][:, 2:6] * y,
    "the last": lambda x, y: x[:, -1:] * y,
    "every other": lambda x, y: x[:, 1::2] * y,
    "along another axis": lambda x, y: torch.stack([x, x])[1][:, :4] * y,
    "an output": lambda x, y: torch.cat([x, y], 1)[:, 1],
    "an item that is an output": lambda x, y: torch.cat([x, y], 1).split(6, 1)[1],
    "the whole beside": lambda x, y: x.sum(1, keepdim=True) * x[:, 4:] * y,
}


class Net(nn.Module):
    def __init__(self, take) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(4, 4)
        self.take = take
        self.register_buffer("known", torch.tensor([[0.0, 0.5, 1.0, 2.0]]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return self.take(torch.cat([y, self.known], 1), y)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("take", PARTS.values(), ids=PARTS)
def test_parts_of_concatenations(take, precision, tmp_path):
    x = torch.tensor([[0.3, -1.0, 0.25, 2.0]])
    palettizer = KMeansPalettizer(Net(take).eval())
    prepared = palettizer.prepare(x)
    wanted = prepared(x).detach().numpy()
    path = palettizer.export(
        tmp_path / "m.mlpackage", x, backend_options={"compute_precision": precision}
    )
    (found,) = run_package(path, {"x": x.numpy()}).values()
    np.testing.assert_allclose(
        found, wanted, rtol=1e-5, atol=1e-6 if precision == "float32" else 5e-3
    )
