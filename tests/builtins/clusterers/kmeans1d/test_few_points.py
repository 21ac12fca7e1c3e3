"""Blocks of a few points come out the same, compiled or one by one."""

from __future__ import annotations

import numpy as np
import pytest

from palette_core.builtins.clusterers.kmeans1d import small


def points_of(kind: str, shape: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(5)
    normal = rng.standard_normal(shape)
    return {
        "normal": normal,
        "ties": np.round(normal * 2) / 2,  # and zeros of both signs
        "far": np.exp(20 * normal),
        "off zero": 1000 + np.round(normal * 3) / 1024,
    }[kind].astype(np.float32)


def found(x, w, k, compiled, monkeypatch):
    monkeypatch.setattr(small, "is_compiled", lambda _: compiled)
    lut, codes = np.empty((len(x), k), np.float32), np.empty(x.shape, np.uint8)
    small.fit_few(x, w, lut, codes)
    return lut.view(np.int32), codes


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["normal", "ties", "far", "off zero"])
@pytest.mark.parametrize(("points", "k"), [(1, 4), (2, 2), (16, 3), (32, 16), (64, 4), (64, 256)])
def test_steps_in_numpy_find_the_same_bits(kind, points, k, weighted, monkeypatch):
    x = points_of(kind, (40, points))
    w = np.empty((40, 0), np.float32)
    if weighted:
        rng = np.random.default_rng(6)
        w = (rng.random(x.shape) * (rng.random(x.shape) < 0.7)).astype(np.float32)
        w[0] = 0.0  # nothing weighs anything: all count alike
    for one, other in zip(*(found(x, w, k, c, monkeypatch) for c in (True, False)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_light_point_far_away_counts_exactly(compiled, monkeypatch):
    """Its mean with a heavy one rounds to the heavy one, and its error must not."""
    x = np.array([[-707106839724032.0, 0.0, 1.0]], np.float32)
    w = np.array([[1e-30, 1.0, 1.0]], np.float32)  # 0.50000008 as a neighbour of 0; 0.5 alone
    lut, codes = found(x, w, 2, compiled, monkeypatch)
    assert codes.tolist() == [[0, 1, 1]]
    assert lut.view(np.float32).tolist() == [[-707106839724032.0, 0.5]]
