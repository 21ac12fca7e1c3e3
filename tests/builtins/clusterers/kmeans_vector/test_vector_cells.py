"""Cells that stand for many pairs, against sums in plain numpy and against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from palette_core.builtins.clusterers.kmeans_vector.cells import as_cells
from palette_core.builtins.clusterers.kmeans_vector.clusterer import KMeansVector
from palette_core.plugins import ClusterProblem


def pairs(count, seed=0):
    return np.random.default_rng(seed).normal(3.0, 0.5, (count, 2)).astype(np.float32)


def no_weights(points):
    return np.empty((len(points), 0), np.float32)


@pytest.mark.parametrize("weighted", [False, True])
def test_every_level_has_the_weight_and_the_mean_of_the_points(weighted):
    points = pairs(40000)
    weights = np.random.default_rng(1).random((40000, 1)).astype(np.float32) ** 3
    levels = as_cells(points, weights if weighted else no_weights(points), 16)
    own = weights if weighted else np.ones((40000, 1))
    mean = np.average(points.astype(float), axis=0, weights=own[:, 0])
    sizes = [len(few) for few, _ in levels]
    assert sizes == sorted(sizes)
    assert 16 < sizes[0] < sizes[-1] < 40000
    for few, mass in [(few.astype(float), mass.astype(float)) for few, mass in levels]:
        assert mass.max() == 1.0
        assert (mass > 0).all()
        assert np.average(few, axis=0, weights=mass[:, 0]) == pytest.approx(mean, rel=1e-7)
        # What points cost about the means of their cells is all that is lost.
        about = (mass * (few - mean) ** 2).sum() / mass.sum()
        truth = (own * (points - mean) ** 2).sum() / own.sum()
        assert truth * 0.99 < about < truth


@pytest.mark.parametrize("entries", [2, 5, 9, 16, 33])
def test_no_cell_is_lost_between_strips_and_bands(entries):
    # As many rows for each level, whatever of them fits a strip; more cells than points.
    points = pairs(24000)
    levels = as_cells(points, no_weights(points), entries)
    assert len(levels) == 2
    for few, mass in levels:
        whole = mass.astype(float).sum() / mass.min()
        assert whole == pytest.approx(24000, rel=1e-5)  # the lightest cell has one point
        mean = np.average(few.astype(float), axis=0, weights=mass[:, 0])
        assert mean == pytest.approx(points.astype(float).mean(axis=0), rel=1e-6)


def test_points_beyond_the_grid_are_kept_as_they_are():
    points = pairs(40000)
    far = np.array([[1e30, 3.0], [3.0, -400.0], [-1e30, 1e30]], np.float32)
    points[[5, 77, 39999]] = far
    weights = np.ones((40000, 1), np.float32)
    weights[77] = 0.0
    for few, _ in as_cells(points, weights, 16):
        kept = {tuple(row) for row in few.tolist()}
        assert tuple(far[0].tolist()) in kept
        assert tuple(far[2].tolist()) in kept
        assert tuple(far[1].tolist()) not in kept  # without weight, without say


def test_points_that_no_grid_can_stand_for_have_no_cells():
    points = pairs(40000)
    assert not as_cells(pairs(3000), no_weights(pairs(3000)), 16)  # few
    assert not as_cells(points, no_weights(points), 256)  # few for so many entries
    assert not as_cells(points, np.ones_like(points), 16)  # one weight per coordinate
    assert not as_cells(points.reshape(-1, 4), no_weights(points.reshape(-1, 4)), 16)
    flat = points.copy()
    flat[:, 1] = 2.0
    assert not as_cells(flat, no_weights(flat), 16)
    # Two heaps that a coarse grid sees as two points, far from each other.
    heaps = points.copy()
    heaps[::20] += 1e6
    assert not as_cells(heaps, no_weights(heaps), 16)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_tables_found_on_cells_are_no_worse_than_scikit_learn(weighted):
    points = pairs(40000)
    points[::4] += 3.0
    weight = np.random.default_rng(1).random(40000).astype(np.float32) ** 3
    own = weight if weighted else np.ones(40000)
    given = torch.from_numpy(weight)[None, :, None].expand(1, -1, 2).contiguous()
    problem = ClusterProblem(torch.from_numpy(points)[None], 16, given if weighted else None)
    levels = as_cells(points, own[:, None].astype(np.float32), 16)
    assert len(levels) > 1
    found = KMeansVector().fit(problem).decode()[0].double().numpy()
    ours = (own[:, None] * (points.astype(float) - found) ** 2).sum()
    peers = [
        KMeans(16, n_init=1, tol=1e-6, random_state=r).fit(points, sample_weight=own).inertia_
        for r in range(4)
    ]
    assert ours <= np.median(peers) * 1.001
