"""The compiled sweep and the torch one find the same scale."""

from __future__ import annotations

import pytest
import torch

from palette_core.builtins.lut_quantizers import _scale

INTEGERS = torch.arange(256.0, dtype=torch.float64)
FLOATS = torch.tensor([0, 0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 448.0], dtype=torch.float64)


@pytest.mark.parametrize("entries", [1, 2, 16, 256])
@pytest.mark.parametrize(
    ("ladder", "up", "down", "window"),
    [(INTEGERS, 255, 0, None), (INTEGERS, 127, 128, None), (INTEGERS, 255, 255, 255),
     (FLOATS, 10, 10, None)],
)  # fmt: skip
def test_both_sweeps_agree(entries, ladder, up, down, window):
    generator = torch.Generator().manual_seed(entries)
    tables = torch.randn(12, entries, generator=generator, dtype=torch.float64)
    tables = tables / tables.abs().amax(dim=1, keepdim=True)
    tables[0] = 0  # no scale
    tables[1] = tables[1].abs()
    tables[2] = -tables[2].abs()
    compiled = _scale.best_scale(tables, ladder, up, down, window)
    assert torch.allclose(
        compiled, _scale.sweep_in_torch(tables, ladder, up, down, window), rtol=1e-9
    )
    assert compiled[0] == 0
    climbs = (tables > 0).any(dim=1) if down == 0 else (tables != 0).any(dim=1)
    assert torch.equal(compiled > 0, climbs)
