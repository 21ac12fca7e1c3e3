"""A block clustered in one compiled call comes out as it does step by step."""

from __future__ import annotations

import pytest
import torch

from palette_core.builtins.clusterers.kmeans1d import floats
from palette_core.errors import WeightError


def points_of(kind: str, shape: tuple[int, int]) -> torch.Tensor:
    normal = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    return {
        "normal": normal * 0.02,
        "few values": (normal * 3).round() / 7,  # and zeros of both signs
        "far out": torch.cat([normal[:, :20] * 50, normal[:, 20:] * 1e-3], dim=1),
        "apart": torch.where(normal > 0, normal * 1e-3 + 5, normal * 1e-3 - 5),
        "off zero": 1000 + normal * 1e-3,
    }[kind]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("kind", "shape", "k"),
    [
        ("normal", (3, 5000), 16),
        ("normal", (2, 66_000), 256),
        ("normal", (1, 40_000), 1),
        ("normal", (1, (1 << 20) + 7), 16),  # sums of two parts are added up
        ("few values", (2, 20_000), 16),
        ("far out", (2, 20_000), 4),
        ("apart", (2, 20_000), 2),
        ("off zero", (2, 20_000), 16),
    ],
)
def test_one_call_finds_what_steps_find(kind, shape, k, weighted, monkeypatch):
    points = points_of(kind, shape)
    weights = None
    if weighted:
        weights = torch.rand(shape, generator=torch.Generator().manual_seed(8)) ** 3
        weights[:, ::9] = 0.0
    found = []
    for at_once in (True, False):
        monkeypatch.setattr(floats, "is_compiled", lambda _, at_once=at_once: at_once)
        found.append(floats.fit_floats(points, weights, k, 4))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_ordinary_blocks_are_done_in_one_call(monkeypatch):
    def refuse(*_):
        raise AssertionError("went step by step")

    monkeypatch.setattr(floats, "solve_source", refuse)
    monkeypatch.setattr(floats, "is_compiled", lambda _: True)
    points = points_of("normal", (32, 8192))
    lut, codes = floats.fit_floats(points, None, 16, 4)
    assert (lut.gather(1, codes.long()) - points).square().mean() < 5e-6


def test_what_does_a_block_at_once_is_compiled_for_many_blocks_alone(monkeypatch):
    monkeypatch.setattr(floats, "is_compiled", lambda _: False)
    monkeypatch.setattr(floats, "_step_by_step", [0])
    monkeypatch.setattr(floats, "_MANY", 10)
    asked = []
    monkeypatch.setattr(floats, "fit_at_once", lambda *_: asked.append(1))  # cannot: falls back
    for blocks in (4, 5, 6, 1):
        asked.clear()
        floats.fit_floats(points_of("normal", (blocks, 4096)), None, 4, 4)
        assert len(asked) == (0 if blocks in (4, 5) else blocks)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("count", [40, 20_000, (1 << 20) + 7])
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_points_that_are_no_numbers_are_refused_wherever_they_lie(
    bad, count, at_once, weighted, monkeypatch
):
    monkeypatch.setattr(floats, "is_compiled", lambda _: at_once)
    points = points_of("normal", (2, count))
    weights = torch.ones_like(points) if weighted else None
    for at in (0, 7, count - 1):  # some are seen when the cells are chosen, some are not
        spoilt = points.clone()
        spoilt[1, at] = float(bad)
        if weights is not None:
            weights[1, at] = 0.0
        with pytest.raises(WeightError, match="kmeans1d got points that are NaN or infinite"):
            floats.fit_floats(spoilt, weights, 4, 4)
