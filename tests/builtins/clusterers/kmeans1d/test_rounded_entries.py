"""Entries on the values of a 16-bit dtype, against trying every neighbouring table."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palette_core.builtins.clusterers.kmeans1d.clusterer import KMeans1d
from palette_core.plugins import ClusterProblem

DTYPES = [torch.bfloat16, torch.float16]


def fitted(points, k, weights=None):
    importance = None if weights is None else weights.reshape(1, -1, 1)
    return KMeans1d().fit(ClusterProblem(points.reshape(1, -1, 1), k, importance))


def cost_of(entries, x, w):
    return float((w * np.square(x[:, None] - np.asarray(entries)).min(axis=1)).sum())


def neighbours(value, dtype, reach):
    """Values of the dtype around one of them, itself included."""
    found = [value]
    for way in (float("inf"), -float("inf")):
        there = torch.tensor(value, dtype=dtype)
        for _ in range(reach):
            there = torch.nextafter(there, torch.tensor(way, dtype=dtype))
            found.append(float(there))
    return [v for v in found if np.isfinite(v)]


def drawn(dtype, seed, count, weighted):
    rng = np.random.default_rng(seed)
    points = torch.from_numpy(rng.standard_t(4, size=count)).to(dtype)
    weights = None
    if weighted:
        weights = torch.from_numpy(rng.exponential(size=count) ** 3).float()
    w = np.ones(count) if weights is None else weights.double().numpy()
    return points, weights, points.double().numpy(), w


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(20, 300), st.booleans())
def test_no_table_next_to_it_is_better(dtype, seed, k, count, weighted):
    points, weights, x, w = drawn(dtype, seed, count, weighted)
    found = fitted(points, k, weights).lut[0, :, 0].double().tolist()
    cost = cost_of(found, x, w)
    for entries in itertools.product(*(neighbours(e, dtype, 1) for e in found)):
        assert cost <= cost_of(entries, x, w) * (1 + 1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(10, 40))
def test_two_entries_are_the_best_of_all(seed, count):
    rng = np.random.default_rng(seed)
    points = torch.from_numpy(1 + rng.random(count) ** 2).to(torch.bfloat16)
    x, w = points.double().numpy(), np.ones(count)
    grid = np.arange(128, 257) / 128  # all of bfloat16 from 1 to 2
    least = min(cost_of(pair, x, w) for pair in itertools.combinations(grid, 2))
    found = fitted(points, 2).lut[0, :, 0].double().tolist()
    assert cost_of(found, x, w) <= least * (1 + 1e-9)


def test_settling_is_better_than_rounding():
    gained = 0.0
    for seed in range(4):
        points, _, x, w = drawn(torch.bfloat16, seed, 3000, weighted=False)
        wide = fitted(points.double(), 64).lut[0, :, 0]
        rounded = cost_of(wide.to(torch.bfloat16).double().numpy(), x, w)
        settled = cost_of(fitted(points, 64).lut[0, :, 0].double().numpy(), x, w)
        assert cost_of(wide.numpy(), x, w) < settled <= rounded
        gained += 1 - settled / rounded
    assert gained > 3e-4
