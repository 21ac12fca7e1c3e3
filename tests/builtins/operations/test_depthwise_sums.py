"""Sums over windows of depthwise convolutions against unfolded inputs, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from palette_core.builtins.operations._depthwise_sums import depthwise_products, depthwise_sums
from palette_core.builtins.operations._window_shapes import Shape

# Samples, channels, sizes, kernel, stride, dilation, padding.
CASES = {
    "several bands": (2, 20, (70, 40), (3, 3), (1, 1), (1, 1), (1, 1)),
    "bands of steps": (1, 17, (90, 41), (5, 5), (2, 2), (1, 1), (2, 2)),
    "bands of dilated": (1, 16, (100, 33), (3, 3), (2, 1), (2, 3), (2, 3)),
    "fewer windows than rows": (7, 33, (7, 7), (5, 5), (1, 1), (1, 1), (0, 0)),
    "one window": (5, 16, (5, 5), (5, 5), (1, 1), (1, 1), (0, 0)),
    "hardly any input": (2, 16, (1, 2), (3, 3), (1, 1), (1, 1), (2, 2)),
    "blocks of columns": (2, 18, (20, 19), (7, 7), (1, 1), (1, 1), (3, 3)),
    "more columns than rows": (3, 16, (12, 30), (2, 6), (1, 2), (1, 1), (0, 1)),
    "along one axis": (2, 16, (1, 3000), (1, 9), (1, 1), (1, 1), (0, 4)),
    "along the other": (2, 16, (1300, 1), (4, 1), (3, 1), (2, 1), (1, 0)),
    "long windows": (1, 16, (1, 2500), (1, 40), (1, 1), (1, 1), (0, 0)),
    "few channels": (6, 3, (20, 20), (3, 3), (1, 1), (1, 1), (1, 1)),
    "few channels of one": (1, 3, (20, 20), (3, 3), (2, 2), (1, 1), (1, 1)),
    "wide rows": (1, 16, (6, 1500), (3, 3), (1, 1), (1, 1), (1, 1)),
    "much padding": (3, 16, (4, 4), (2, 2), (1, 1), (1, 1), (5, 5)),
}


def made(case):
    samples, channels, sizes, kernel, stride, dilation, padding = CASES[case]
    torch.manual_seed(0)
    x, y = (torch.randn(samples, channels, *sizes) for _ in range(2))
    shape = Shape(channels, kernel, stride, dilation)
    padded = [n + 2 * p for n, p in zip(sizes, padding, strict=True)]
    return x, y, shape, padding, shape.counts(padded)


def windows_of(x, shape, padding):
    """``[channels, E, windows of all samples]`` float64."""
    found = F.unfold(
        x.double(), shape.kernel, padding=padding, stride=shape.stride, dilation=shape.dilation
    )
    return found.unflatten(1, (x.shape[1], -1)).permute(1, 2, 0, 3).flatten(2)


@pytest.mark.parametrize("last", [False, True], ids=["planes", "channels last"])
@pytest.mark.parametrize("case", CASES)
def test_sums_are_those_of_unfolded_windows(case, last):
    x, y, shape, padding, counts = made(case)
    now, then = windows_of(x, shape, padding), windows_of(y, shape, padding)
    matrices = torch.randn(x.shape[1], 2, math.prod(shape.kernel))
    if last:
        x, y = (z.to(memory_format=torch.channels_last) for z in (x, y))
    size = now.square().sum(2).sqrt()
    total, moved = depthwise_sums(x, y, matrices, shape, padding, counts)
    # As exact as float32 is: sums of a few dozen products are added up in float64.
    scale = size[:, :, None] * size[:, None]
    near = {"rtol": 0.0, "atol": 3e-7}
    torch.testing.assert_close(total / scale, now @ now.mT / scale, **near)
    outputs = matrices.double() @ (then - now)
    scale = outputs.square().sum(2).sqrt()[:, :, None] * size[:, None]
    torch.testing.assert_close(moved / scale, outputs @ now.mT / scale, **near)
    assert torch.equal(depthwise_products(x, None, shape, padding, counts), total)
    cross = depthwise_products(y, x, shape, padding, counts)
    scale = then.square().sum(2).sqrt()[:, :, None] * size[:, None]
    torch.testing.assert_close(cross / scale, then @ now.mT / scale, **near)


def test_what_lies_beyond_a_piece_is_in_no_sum():
    # Columns and windows that do not exist are multiplied, too, and left alone.
    for case in ("blocks of columns", "fewer windows than rows", "along one axis"):
        x, y, shape, padding, counts = made(case)
        channels = x.shape[1]
        matrices = torch.randn(channels, 1, math.prod(shape.kernel))
        huge = torch.full_like(x, 3e38)
        depthwise_sums(huge, -huge, matrices, shape, padding, counts)  # what memory holds then
        for found in depthwise_sums(x, y, matrices, shape, padding, counts):
            assert found.isfinite().all()


def test_no_samples_have_no_sums():
    x, y, shape, padding, counts = made("several bands")
    matrices = torch.randn(x.shape[1], 1, 9)
    for found in depthwise_sums(x[:0], y[:0], matrices, shape, padding, counts):
        assert not found.any()


def test_a_channel_counts_alike_beside_any_others():
    x, y, shape, padding, counts = made("bands of steps")
    matrices = torch.randn(x.shape[1], 1, 25)
    whole = depthwise_sums(x, y, matrices, shape, padding, counts)
    some = slice(1, 17)
    part = depthwise_sums(x[:, some], y[:, some], matrices[some], shape, padding, counts)
    for all_of_them, few in zip(whole, part, strict=True):
        assert torch.equal(all_of_them[some], few)
