"""Passes over many points side by side, against sums and costs worked out by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from palette_core.builtins.clusterers.kmeans_vector import lanes
from palette_core.builtins.clusterers.kmeans_vector.lane_search import LANES
from palette_core.builtins.clusterers.kmeans_vector.lloyd import Lloyd
from palette_core.tensors.assignment.blocks import Block, Workers
from palette_core.tensors.assignment.kernels import CHUNK

_COUNT = CHUNK + LANES + 37  # neither chunks nor lanes come out even


def _room(count, entries, dim):
    chunks = -(-count // CHUNK)
    return {
        "codes": np.zeros(count, np.uint8),
        "counts": np.zeros((chunks, entries), np.int64),
        "sums": np.full((chunks, entries, dim), np.nan),
        "mass": np.full((chunks, entries, dim), np.nan),
        "totals": np.empty(chunks),
    }


def _pass(points, weights, table, room, *, fresh):
    return lanes.pass_over(
        points, weights, table, lanes.scale_of(points), room["codes"], room["counts"], fresh,
        0, len(room["totals"]), room["sums"], room["mass"], room["totals"],
    )  # fmt: skip


def _by_numpy(points, weights, table):
    gaps = ((points[:, None].astype(float) - table.astype(points.dtype)) ** 2).sum(axis=2)
    codes = gaps.argmin(axis=1)
    w = weights[:, 0].astype(float) if weights.shape[1] else np.ones(len(points))
    own = np.eye(len(table))[codes] * w[:, None]
    return codes, own.T @ points, own.sum(axis=0), float((gaps.min(axis=1) * w).sum())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("entries", "dim"), [(5, 1), (16, 2), (7, 3), (16, 4), (9, 6), (13, 8)])
def test_codes_sums_and_costs_are_those_of_numpy(entries, dim, dtype, weighted):
    random = np.random.default_rng(entries)
    points = random.normal(size=(_COUNT, dim)).astype(dtype)
    weights = random.random((_COUNT, int(weighted))).astype(np.float32)
    weights[::5] = 0.0
    table = random.normal(size=(entries, dim))
    room = _room(_COUNT, entries, dim)
    for fresh in (True, False, False):
        total = _pass(points, weights, table, room, fresh=fresh)
        codes, sums, mass, cost = _by_numpy(points, weights, table)
        assert (room["codes"] != codes).sum() <= 1  # one may lie in the middle, but for rounding
        np.testing.assert_allclose(room["sums"].sum(axis=0), sums, rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(
            room["mass"].sum(axis=0), np.repeat(mass[:, None], dim, axis=1), rtol=1e-4, atol=1.0
        )
        assert total == pytest.approx(cost, rel=1e-6)
        table = table + 0.1 * random.normal(size=table.shape)


@pytest.mark.parametrize("power", [-100, 0, 120])
def test_no_magnitude_is_too_large_or_too_small(power):
    points = np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32)
    none = np.empty((1000, 0), np.float32)
    table = points[:16].astype(float)
    plain, scaled = _room(1000, 16, 2), _room(1000, 16, 2)
    total = _pass(points, none, table, plain, fresh=True)
    unit = 2.0**power
    found = _pass(points * np.float32(unit), none, table * unit, scaled, fresh=True)
    assert (scaled["codes"] == plain["codes"]).all()
    assert found == pytest.approx(total * unit * unit, rel=1e-12)
    np.testing.assert_array_equal(scaled["sums"], plain["sums"] * unit)


def test_the_first_of_equal_entries_is_taken():
    points = np.zeros((600, 2), np.float32)
    room = _room(600, 6, 2)
    _pass(points, np.empty((600, 0), np.float32), np.ones((6, 2)), room, fresh=True)
    assert not room["codes"].any()


def test_nothing_is_left_of_an_entry_that_loses_its_points():
    random = np.random.default_rng(1)
    points = random.normal(size=(5000, 2)).astype(np.float32)
    weights = random.random((5000, 1)).astype(np.float32)
    room = _room(5000, 3, 2)
    table = np.array([[-1.0, 0.0], [1.0, 0.0], [0.3, 0.4]])
    _pass(points, weights, table, room, fresh=True)
    assert (room["mass"] > 0).all()
    table[2] = 1e6
    _pass(points, weights, table, room, fresh=False)
    assert not room["counts"][:, 2].any()
    assert not room["sums"][:, 2].any()
    assert not room["mass"][:, 2].any()


@pytest.mark.parametrize("weighted", [False, True])
def test_an_entry_without_points_moves_to_the_one_that_costs_most(weighted):
    points = np.random.default_rng(2).normal(size=(3000, 2)).astype(np.float32)
    points[1234] = 40.0
    weights = np.ones((3000, int(weighted)), np.float32)
    table = np.array([[0.0, 0.0], [0.5, 0.5], [-1e3, 1e3]])
    Lloyd(Block(0, points, weights), table).iterate(table, 50, 1e-6)
    assert np.abs(table - 40.0).sum(axis=1).min() < 1e-12


@pytest.mark.parametrize(("entries", "dim"), [(16, 2), (16, 4), (256, 4)])
def test_several_threads_take_the_same_steps(entries, dim):
    points = np.random.default_rng(3).normal(size=(3 * CHUNK + 5, dim)).astype(np.float32)
    block = Block(0, points, np.empty((len(points), 0), np.float32))
    alone, together = (points[:entries].astype(float) for _ in "ab")
    job = Lloyd(block, alone)
    total = job.iterate(alone, 20, 1e-5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with Workers() as workers:
            other = Lloyd(block, together)
            assert other.iterate(together, 20, 1e-5, workers) == total
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(other.codes, job.codes)


def test_iteration_ends_at_the_means_of_its_codes():
    random = np.random.default_rng(4)
    points = random.standard_cauchy((20000, 2)).astype(np.float32)  # far ones come and go
    weights = random.random((20000, 1)).astype(np.float32)
    table = points[:16].astype(float)
    job = Lloyd(Block(0, points, weights), table)
    job.iterate(table, 40, 1e-9)
    for k in range(16):
        own, w = points[job.codes == k].astype(float), weights[job.codes == k].astype(float)
        if w.sum() > 0:
            np.testing.assert_allclose(table[k], (own * w).sum(axis=0) / w.sum(), rtol=1e-9)
