"""What error feedback says about its solution, beside the definition in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from layerwise_cases import DAMPING, LAYOUTS, moments_for

from palette_core.builtins.clusterers.layerwise import factors as factors_of
from palette_core.builtins.clusterers.layerwise import steps
from palette_core.builtins.clusterers.layerwise.problem import pose, weighted_kmeans
from palette_core.plugins import ClusterProblem
from palette_core.tensors.layout import BlockLayout

WIDE = {
    "wide rows": (BlockLayout((24, 150), (12, 150)), 1, (0,)),
    "wide columns": (BlockLayout((24, 150), (24, 50)), 1, (0,)),
    "wide vectors": (BlockLayout((24, 150), (24, 150), 2), 2, (0,)),
}


def posed(name, scales, pinned):
    """A problem in matrix form, and its first solution."""
    layout, groups, rows = {**LAYOUTS, **WIDE}[name]
    generator = torch.Generator().manual_seed(1)
    points = layout.split(torch.randn(layout.shape, generator=generator))
    factors = 0.5 + torch.rand(points.shape, generator=generator) if scales else None
    zeros = torch.rand(points.shape[:2], generator=generator) < 0.2 if pinned else None
    n_rows = layout.shape[0] if rows == (0,) else None
    share = None if n_rows is None else torch.arange(n_rows) % 3 * 0.5  # some count nothing
    moments = moments_for(layout, groups, rows, share)
    problem = ClusterProblem(points, 4, None, moments, None, scales=factors, zeros=zeros)
    return pose(problem, moments, DAMPING, weighted_kmeans(problem, moments))


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("name", [*LAYOUTS, *WIDE])
def test_errors_slopes_and_costs_are_those_of_the_codes(name, scales, pinned, act_order):
    made = posed(name, scales, pinned)
    matrix, tables = made.matrix, made.start.tables
    own = matrix.group.reshape(-1, matrix.dim)
    act_order = act_order and bool((own == own[:, :1]).all())
    found = steps.feed_back(matrix, factors_of.factorize(matrix.h, act_order=act_order), tables)
    factor = matrix.factor.repeat(matrix.wide, axis=1).astype(float)
    decoded = np.concatenate(
        [tables.lut[matrix.table, found.codes][:, None, :, d] for d in range(matrix.dim)], axis=1
    ).reshape(matrix.w.shape)
    error = matrix.w - decoded.astype(float) * factor
    slope = np.einsum("rj,rji->ri", error, matrix.h[matrix.group].astype(float))
    costs = matrix.share * (error * slope).sum(axis=1)
    np.testing.assert_allclose(found.error, error, atol=1e-6 * np.abs(matrix.w).max())
    np.testing.assert_allclose(found.grad, slope, atol=2e-5 * np.abs(slope).max())
    np.testing.assert_allclose(found.costs, costs, rtol=1e-4, atol=1e-6 * costs.max())


def test_a_matrix_with_a_ridge_is_not_taken_for_the_one_without():
    made = posed("wide rows", scales=False, pinned=False)
    h = np.ones_like(made.matrix.h)
    factors = factors_of.factorize(h, act_order=True)
    assert not factors.exact
    found = steps.feed_back(replace(made.matrix, h=h), factors, made.start.tables)
    error = found.error.astype(float)
    np.testing.assert_allclose(found.grad, error @ h[0], atol=1e-4)
