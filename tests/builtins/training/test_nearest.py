"""Nearest entries and sums over members against brute force."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palette_core.tensors.nearest import assign, look_up, pieces, sums_by_code

NUMBERS = st.floats(-4, 4, width=16)


@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=12), st.lists(NUMBERS, min_size=2, max_size=6))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scalars_exactly(dtype: torch.dtype, points: list[float], entries: list[float]) -> None:
    x, c = (torch.tensor(v, dtype=dtype)[None, :, None] for v in (points, entries))
    codes = assign(x, c)[0].tolist()
    exact = [Fraction(e) for e in c[0, :, 0].tolist()]
    for value, code in zip(x[0, :, 0].tolist(), codes, strict=True):
        gaps = [abs(Fraction(value) - e) for e in exact]
        assert gaps[code] == min(gaps)


def test_bounds_between_neighbouring_floats() -> None:
    """The middle of two entries is often no float of their dtype."""
    entries = torch.tensor([1.0, 1.0000001192092896, 3.0])[None, :, None]
    points = torch.tensor([1.0, 1.0000001192092896, 2.0, 2.0000002384185791])[None, :, None]
    assert assign(points, entries)[0].tolist() == [0, 1, 1, 2]


def test_the_lowest_among_equals() -> None:
    entries = torch.tensor([3.0, 1.0, 1.0, 3.0])[None, :, None]
    points = torch.tensor([0.0, 1.0, 2.5, 9.0])[None, :, None]
    assert assign(points, entries)[0].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_blocks_have_tables_of_their_own(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points, entries = torch.randn(3, 70, dim), torch.randn(3, 8, dim)
    expected = torch.cdist(points.double(), entries.double()).argmin(-1)
    assert torch.equal(assign(points, entries).long(), expected)
    monkeypatch.setattr("palette_core.tensors.nearest._CHUNK", 100)
    assert torch.equal(assign(points, entries).long(), expected)


def test_pieces_cover_everything_once() -> None:
    for shape in ((1, 5, 1), (7, 3, 2), (3, 1 << 19, 4), (5000, 400, 16)):
        seen = torch.zeros(shape[:2], dtype=torch.int32)
        for block, piece in pieces(*shape):
            seen[block, piece] += 1
            assert seen[block, piece].numel() * shape[2] <= 1 << 18
        assert (seen == 1).all()


def test_sums_over_members() -> None:
    values = torch.randn(2, 50, 3)
    codes = torch.randint(0, 4, (2, 50), dtype=torch.uint8)
    got = sums_by_code(values, codes, 4)
    for b in range(2):
        for k in range(4):
            expected = values[b][codes[b] == k].double().sum(0)
            torch.testing.assert_close(got[b, k], expected)


def test_look_up_sends_gradients_to_members_and_entries() -> None:
    points = torch.randn(2, 30, 2, requires_grad=True)
    entries = torch.randn(2, 4, 2, requires_grad=True)
    codes = torch.randint(0, 4, (2, 30), dtype=torch.uint8)
    grad = torch.randn(2, 30, 2)
    made = look_up(points, entries, codes)
    one_hot = torch.nn.functional.one_hot(codes.long(), 4).float()
    assert torch.equal(made, one_hot @ entries)
    to_points, to_entries = torch.autograd.grad(made, (points, entries), grad)
    assert torch.equal(to_points, grad)
    torch.testing.assert_close(to_entries, one_hot.mT @ grad)
