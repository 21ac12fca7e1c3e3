"""Soft assignments against the full attention matrix, by autograd and finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from palette_core.builtins.training import _attention
from palette_core.builtins.training._attention import attended_means, attended_points, distinct

SHAPES = [(1, 50, 1, 4), (3, 40, 2, 4), (2, 30, 3, 8)]


def full_points(points: Tensor, lut: Tensor, tau: Tensor) -> Tensor:
    return attention(points, lut, tau) @ lut


def full_means(points: Tensor, lut: Tensor, tau: Tensor) -> Tensor:
    a = attention(points, lut, tau)
    return (a.mT @ points) / a.sum(dim=1)[..., None]


def attention(points: Tensor, lut: Tensor, tau: Tensor) -> Tensor:
    gaps = points[:, :, None] - lut[:, None]
    return torch.softmax(-gaps.square().sum(-1) / tau, dim=-1)


PAIRS = {"points": (attended_points, full_points), "means": (attended_means, full_means)}


def problem(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    blocks, count, dim, entries = shape
    g = torch.Generator().manual_seed(seed)
    points = torch.randn(blocks, count, dim, dtype=torch.float64, generator=g)
    lut = torch.randn(blocks, entries, dim, dtype=torch.float64, generator=g)
    tau = torch.rand(blocks, 1, 1, dtype=torch.float64, generator=g) + 0.2
    return points.requires_grad_(), lut.requires_grad_(), tau


def assert_same(points: Tensor, lut: Tensor, tau: Tensor, pair: Any) -> None:
    ours, full = pair
    expected = full(points, lut, tau)
    got = ours(points, lut, tau, distinct(points))
    torch.testing.assert_close(got, expected)
    grad = torch.randn(expected.shape, dtype=expected.dtype)
    wanted = torch.autograd.grad(expected, (points, lut), grad)
    for a, b in zip(torch.autograd.grad(got, (points, lut), grad), wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape: tuple[int, ...], pair: Any) -> None:
    assert_same(*problem(shape), pair)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
@pytest.mark.parametrize("shape", SHAPES)
def test_in_pieces(shape: tuple[int, ...], pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palette_core.tensors.nearest._CHUNK", 64)
    assert_same(*problem(shape), pair)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_finite_differences(pair: Any) -> None:
    points, lut, tau = problem((2, 6, 2, 3))
    torch.autograd.gradcheck(lambda x, c: pair[0](x, c, tau, distinct(x)), (points, lut))


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_of_values_that_occur_often(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that lie on the grid of distinct ones are not rounded at all."""
    monkeypatch.setattr(_attention, "_DISTINCT", 32)
    g = torch.Generator().manual_seed(0)
    points = torch.randint(32, (2, 500, 1), generator=g).double() / 31
    points[:, 0], points[:, 1] = 0, 1
    assert distinct(points).index is not None
    lut = torch.rand(2, 4, 1, dtype=torch.float64, generator=g)
    tau = torch.tensor([0.05, 0.1], dtype=torch.float64)[:, None, None]
    assert_same(points.requires_grad_(), lut.requires_grad_(), tau, pair)


def test_an_entry_to_which_nothing_attends_stays() -> None:
    points, lut, _ = problem((1, 20, 1, 3))
    far = lut.detach().clone()
    far[0, 2] = 1e6
    far.requires_grad_()
    tau = torch.full((1, 1, 1), 0.1, dtype=torch.float64)
    means = attended_means(points, far, tau, distinct(points))
    assert means[0, 2] == 1e6
    means.sum().backward()
    assert torch.isfinite(points.grad).all()
    assert far.grad[0, 2] == 1


def test_rounding_is_within_half_a_step_of_the_range() -> None:
    points = torch.randn(2, 70_000, 1, generator=torch.Generator().manual_seed(0))
    among = distinct(points)
    assert among.values.shape == (2, 65_536, 1)
    assert float(among.counts.sum()) == points.numel()
    step = (points.amax(1) - points.amin(1)) / 65_535
    back = among.spread(among.values)
    assert ((back - points).abs() <= 0.51 * step[:, None]).all()


@pytest.mark.parametrize("dim", [1, 2])
def test_few_points_and_vectors_are_not_rounded(dim: int) -> None:
    points = torch.randn(1, 65_536 if dim == 1 else 70_000, dim)
    among = distinct(points)
    assert among.index is None
    assert torch.equal(among.values, points)


def kept_for_backward(call: Any) -> dict[int, int]:
    """Bytes by storage that autograd keeps."""
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return found


@pytest.mark.parametrize("entries", [4, 64])
def test_what_is_kept_grows_with_weights_and_distinct_values_only(entries: int) -> None:
    count = 1 << 18
    points = torch.randn(1, count, 1).requires_grad_()
    lut = torch.linspace(-2, 2, entries)[None, :, None].requires_grad_()
    tau = torch.full((1, 1, 1), 0.01)
    among = distinct(points)

    def ours() -> None:
        moved = attended_means(points, lut, tau, among)
        attended_points(points, moved, tau, among).sum()

    kept = sum(kept_for_backward(ours).values())
    # Two bytes per weight, values and counts, and tables: 16 kB at most.
    assert kept <= 2 * count + 2 * 4 * 65_536 + 16_384
    full = sum(kept_for_backward(lambda: full_points(points, lut, tau).sum()).values())
    assert full >= 4 * count * entries


def test_vectors_keep_no_attention_either() -> None:
    points = torch.randn(1, 20_000, 4).requires_grad_()
    lut = torch.randn(1, 256, 4).requires_grad_()
    tau = torch.full((1, 1, 1), 0.1)
    among = distinct(points)
    kept = kept_for_backward(lambda: attended_points(points, lut, tau, among).sum())
    assert sum(kept.values()) <= 4 * points.numel() + 4 * lut.numel() + 64
