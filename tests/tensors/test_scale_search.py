"""Indices, errors and means by factors of blocks, against plain torch."""

from __future__ import annotations

import pytest
import torch

from palette_core._common import threads
from palette_core.tensors.layout import BlockLayout
from palette_core.tensors.scale_search import FactorBlocks
from palette_core.tensors.scales import spread_scale


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CASES = {
    "one table": ((24, 32), (24, 32), 0, (24, 2)),
    "rows": ((24, 32), (8, 32), 0, (24, 4)),
    "columns": ((24, 32), (24, 16), 0, (24, 8)),
    "both": ((24, 32), (12, 16), 0, (24, 2)),
    "channels on axis 1": ((32, 24), (32, 6), 1, (2, 24)),
    "convolution": ((8, 6, 3, 3), (4, 6, 3, 3), 0, (8, 3, 1, 1)),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_settling_is_that_of_brute_force(case, weighted):
    shape, block, axis, extents = case
    layout = BlockLayout(shape, block)
    weight = normal(*shape)
    importance = normal(*shape, seed=1).square() if weighted else None
    lut = normal(layout.n_blocks, 7, seed=2).sort(1).values
    lut[:, 6] = lut[:, 5]  # a spare one
    scale = normal(*extents, seed=3).abs() + 0.1
    scale.view(-1)[3] = 0.0
    blocks = FactorBlocks.of(weight, importance, layout, axis, extents)
    found = blocks.settle(lut[..., None], scale)

    factors = layout.split(spread_scale(scale, shape))[..., 0]
    x = layout.split(weight)[..., 0]
    a = torch.ones_like(x) if importance is None else layout.split(importance)[..., 0]
    unit = x / torch.where(factors == 0, 1.0, factors)
    codes = (unit.double()[:, :, None] - lut.double()[:, None]).abs().argmin(2)
    assert torch.equal(found.codes.long(), codes)
    d = lut.gather(1, codes)
    error = (a.double() * (x.double() - factors.double() * d.double()).square()).sum()
    assert found.error == pytest.approx(float(error), rel=1e-9)
    assert torch.equal(found.means[:, 5], found.means[:, 6])
    for b in range(layout.n_blocks):
        for k in range(6):
            own = codes[b] == k
            w, s = a[b][own].double(), factors[b][own].double()
            square = (w * s * s).sum()
            mean = lut[b, k] if square == 0 else (w * s * x[b][own]).sum() / square
            assert float(found.means[b, k]) == pytest.approx(float(mean), rel=1e-5, abs=1e-6)


def test_the_best_of_several_stretches_is_found():
    weight, lut = normal(8, 64), torch.linspace(-1, 1, 8)
    scale = weight.abs().reshape(8, 2, 32).amax(2)
    blocks = FactorBlocks.of(weight, None, BlockLayout((8, 64), (8, 64)), 0, (8, 2))
    stretches = (1.0, 0.7, 0.85, 1.2)
    found = blocks.search(lut.reshape(1, 8, 1), scale, stretches)

    x = weight.reshape(8, 2, 32)
    errors = []
    for stretch in stretches:
        unit = x / (scale * stretch)[..., None]
        d = lut[(unit[..., None] - lut).abs().argmin(-1)]
        best = (x * d).sum(-1) / (d * d).sum(-1)
        errors.append((x - best[..., None] * d).square().sum(-1))
    least = torch.stack(errors).amin(0)
    unit = x / found[..., None]
    d = lut[(unit[..., None] - lut).abs().argmin(-1)]
    assert bool(((x - found[..., None] * d).square().sum(-1) <= least * 1.001).all())


def test_threads_change_nothing(monkeypatch):
    weight, lut = normal(64, 256), normal(4, 16, seed=1).sort(1).values[..., None]
    scale = weight.abs().reshape(64, 8, 32).amax(2)
    blocks = FactorBlocks.of(weight, None, BlockLayout((64, 256), (16, 256)), 0, (64, 8))
    monkeypatch.setattr("palette_core.tensors.scale_search._PIECE", 1024)
    found = []
    for count in (1, 3):
        monkeypatch.setattr(threads, "thread_count", lambda count=count: count)
        settled = blocks.settle(lut, scale)
        found.append((settled.codes, settled.means, blocks.search(lut, scale)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_factors_across_tables_are_not_taken():
    layout = BlockLayout((8, 32), (8, 8))
    assert FactorBlocks.of(normal(8, 32), None, layout, 0, (8, 2)) is None
