"""Scales per channel and per block of inputs, against repetition by hand."""

import pytest
import torch

from palette_core.errors import IncompatibleShapeError
from palette_core.tensors.layout import BlockLayout
from palette_core.tensors.moment_scales import output_error, output_scales
from palette_core.tensors.moments import InputMoments
from palette_core.tensors.scales import (
    apply_scale,
    divide_by_scale,
    range_scale,
    scale_shape,
    spread_scale,
    stored_dtype,
)

CASES = [
    # shape, axis, block size, extents
    ((6, 8), 0, None, (6, 1)),
    ((6, 8), 0, 4, (6, 2)),
    ((6, 8), 1, 3, (2, 8)),
    ((4, 6, 3, 3), 0, 18, (4, 3, 1, 1)),
    ((4, 6, 3, 3), 0, 9, (4, 6, 1, 1)),
    ((4, 6, 3, 3), 0, 3, (4, 6, 3, 1)),
    ((6, 4, 3), 1, 6, (3, 4, 1)),
]


def by_hand(scale, shape):
    for axis, extent in enumerate(shape):
        scale = scale.repeat_interleave(extent // scale.shape[axis], axis)
    return scale


@pytest.mark.parametrize(("shape", "axis", "size", "extents"), CASES)
def test_each_element_has_the_factor_of_its_block(shape, axis, size, extents):
    assert scale_shape(shape, axis, size) == extents
    torch.manual_seed(0)
    weight, scale = torch.randn(shape), torch.rand(extents)
    wide = by_hand(scale, shape)
    assert torch.equal(spread_scale(scale, shape), wide)
    assert torch.equal(apply_scale(weight, scale), weight * wide)
    assert torch.equal(divide_by_scale(weight, scale), weight / wide)
    largest = range_scale(weight, extents)
    assert bool((weight.abs() <= by_hand(largest, shape)).all())
    # Of every block one element is the largest.
    count = int((weight.abs() == by_hand(largest, shape)).sum())
    assert count == largest.numel()


@pytest.mark.parametrize("size", [5, 36, 2, 7, 54 * 2])
def test_sizes_that_are_no_grid_are_refused_and_the_others_named(size):
    with pytest.raises(IncompatibleShapeError, match=r"these do: 3, 9, 18, 27, 54$"):
        scale_shape((4, 6, 3, 3), 0, size)


def test_factors_are_float16_unless_that_loses_digits():
    assert stored_dtype(torch.float32, torch.tensor([0.0, 1e-3, 2.0])) == torch.float16
    assert stored_dtype(torch.float32, torch.zeros(2)) == torch.float16
    assert stored_dtype(torch.float32, torch.tensor([1e-6, 2.0])) == torch.float32
    assert stored_dtype(torch.float32, torch.tensor([1e-5, 2.0])) == torch.float32
    assert stored_dtype(torch.float32, torch.tensor([0.0, 1e-9, 0.01])) == torch.float32
    assert stored_dtype(torch.float64, torch.tensor([1e6])) == torch.float64
    assert stored_dtype(torch.bfloat16, torch.tensor([1e-6])) == torch.bfloat16


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups", "rows", "axis", "size"),
    [
        ((6, 8), 1, (0,), 0, 4),
        ((6, 8), 3, (0,), 0, 2),
        ((8, 6), 1, (1,), 1, 4),
        ((6, 4, 3), 2, (0,), 0, 6),
        ((3, 4, 5), 3, (0,), 0, 5),
    ],
)
def test_scales_of_outputs_are_those_of_least_squares(shape, groups, rows, axis, size, diagonal):
    torch.manual_seed(1)
    layout = BlockLayout(shape, shape, 1, axis)
    weight, unit = torch.randn(shape), torch.randn(shape).sign() + 0.1 * torch.randn(shape)
    unit = unit * weight.sign() * unit.sign()
    empty = InputMoments(torch.zeros(groups, 1), layout, 50, rows)
    columns = empty.to_matrices(weight).shape[-1]
    x = torch.randn(groups, 50, columns)
    hessian = x.square().mean(1) if diagonal else x.mT @ x / 50
    share = torch.rand(groups * weight.numel() // (groups * columns))
    moments = InputMoments(hessian, layout, 50, rows, share)
    extents = scale_shape(shape, axis, size)
    found = output_scales(moments, weight, unit, torch.ones(extents), 0.0)

    w, d = (moments.to_matrices(part).double() for part in (weight, unit))
    ids = torch.arange(found.numel()).reshape(extents)
    ids = moments.to_matrices(by_hand(ids, shape))
    total = 0.0
    for g in range(groups):
        h = torch.diag(hessian[g]) if diagonal else hessian[g]
        root = torch.linalg.cholesky(h.double() + 1e-9 * torch.eye(columns))
        for r in range(w.shape[1]):
            own = ids[g, r].unique()
            parts = torch.stack([d[g, r] * (ids[g, r] == i) for i in own], 1)
            best = torch.linalg.lstsq(root.T @ parts, (root.T @ w[g, r])[:, None]).solution[:, 0]
            got = found.reshape(-1)[own].double()
            right = torch.where(best > 0, best, got)  # a factor is never negative
            if bool((best > 0).all()):
                torch.testing.assert_close(got, right, rtol=1e-3, atol=1e-4)
            gap = root.T @ (w[g, r] - parts @ got)
            total += float(gap @ gap * share.reshape(groups, -1)[g, r])
    gap = weight - apply_scale(unit, found)
    assert output_error(moments, gap, 0.0) == pytest.approx(total, rel=1e-4)
