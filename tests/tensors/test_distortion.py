"""Sums of squares against plain torch arithmetic on the decoded weight."""

from __future__ import annotations

import pytest
import torch

from palette_core.tensors import distortion as module
from palette_core.tensors.distortion import square_sums
from palette_core.tensors.layout import BlockLayout
from palette_core.tensors.palettized import PalettizedTensor

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LAYOUTS = [  # shape, block, D, vector axis
    ((6, 8), (6, 8), 1, 0),
    ((6, 8), (3, 8), 1, 0),
    ((6, 8), (6, 4), 1, 1),
    ((6, 9), (2, 3), 1, 0),
    ((8, 6), (4, 6), 2, 0),
    ((6, 8), (6, 4), 4, 1),
    ((6, 8, 3, 3), (3, 4, 3, 3), 2, 1),
    ((4, 8, 3), (2, 4, 3), 4, 1),
    ((5,), (5,), 1, 0),
    ((1, 1), (1, 1), 1, 1),
]


def made(shape, block, dim, axis, dtype, scaled, size):
    generator = torch.Generator().manual_seed(len(shape) + dim)
    layout = BlockLayout(shape, block, dim, axis)

    def draw(size, *shape):
        values = torch.randn(shape, generator=generator, dtype=torch.float64).clamp(-3, 3)
        return (values * size).to(dtype)

    weight = draw(size, *shape)
    scale = None
    if scaled:
        others = [d for d in range(len(shape)) if d != axis]
        scale = weight.abs().amax(others, keepdim=True) if others else weight.abs()
    lut = draw(1 / 3 if scaled else size, *layout.lut_shape(16))
    codes = torch.randint(16, layout.index_shape, generator=generator, dtype=torch.uint8)
    return weight, PalettizedTensor(codes, lut, 4, axis, dtype, scale=scale)


def expected(weight, palettized):
    unit = float(weight.abs().max())
    x, y = weight.double() / unit, palettized.decode().double() / unit
    return float((y - x).square().sum()) * unit * unit, float(x.square().sum()) * unit * unit


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", [1e-7, 0.02, 1e4])
def test_sums_are_those_of_the_decoded_weight(dtype, scaled, layout, size):
    weight, palettized = made(*layout, dtype, scaled, size)
    assert square_sums(weight, palettized) == pytest.approx(expected(weight, palettized), rel=1e-12)


@pytest.mark.parametrize("size", [1e-320, 1e-200, 1e150])
def test_float64_squares_out_of_range(size):
    weight, palettized = made((6, 8), (3, 8), 1, 0, torch.float64, False, 1.0)
    far = PalettizedTensor(palettized.indices, palettized.lut * size, 4, 0, torch.float64)
    error, norm = square_sums(weight * size, far)
    ratio = expected(weight * size, far)[0] / expected(weight * size, far)[1] if norm else 0.0
    assert error == pytest.approx(ratio * norm, rel=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_stretches_may_begin_anywhere(layout, scaled, monkeypatch):
    weight, palettized = made(*layout, torch.float32, scaled, 1.0)
    whole = square_sums(weight, palettized)
    for stretch in (1, 5, 7, 13):
        monkeypatch.setattr(module, "_STRETCH", stretch)
        assert square_sums(weight, palettized) == pytest.approx(whole, rel=1e-12)


def test_the_number_of_threads_does_not_show(monkeypatch):
    weight, palettized = made((64, 500), (64, 500), 1, 0, torch.float32, False, 1.0)
    monkeypatch.setattr(module, "_STRETCH", 1000)
    before, found = torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.add(square_sums(weight, palettized))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


def test_weights_that_are_not_contiguous():
    weight, palettized = made((6, 8, 3, 3), (3, 4, 3, 3), 2, 1, torch.float32, True, 1.0)
    strange = weight.to(memory_format=torch.channels_last)
    assert square_sums(strange, palettized) == square_sums(weight, palettized)
