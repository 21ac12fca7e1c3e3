"""Points and few entries: all are tried, many points at a time."""

from __future__ import annotations

import numpy as np
import pytest

from palette_core.tensors.assignment.blocks import Block
from palette_core.tensors.assignment.cpu import Pass


@pytest.mark.parametrize(
    ("count", "entries", "dim"), [(1, 1, 2), (255, 5, 3), (513, 16, 4), (9000, 16, 2), (300, 7, 5)]
)
@pytest.mark.parametrize("weighed", [False, True])
def test_the_nearest_is_found_the_lowest_of_equals(count, entries, dim, weighed):
    rng = np.random.default_rng([count, entries, dim])
    # Small integers: many points lie as near to one entry as to another.
    points = rng.integers(-3, 4, (count, dim)).astype(np.float32)
    table = rng.integers(-3, 4, (entries, dim)).astype(np.float64)
    weights = rng.random((count, int(weighed))).astype(np.float32)
    squares = ((points[:, None].astype(np.float64) - table) ** 2).sum(axis=2)
    factors = weights[:, 0].astype(np.float64) if weighed else np.ones(count)
    for known in (False, True):
        job = Pass(Block(0, points, weights), table)
        job.codes[:] = entries - 1
        cost = job.run(table, known=known)
        np.testing.assert_array_equal(job.codes, squares.argmin(axis=1))
        assert cost == pytest.approx((factors * squares.min(axis=1)).sum(), rel=1e-12)
        mass = np.bincount(job.codes, factors, entries)
        np.testing.assert_allclose(job.mass.sum(axis=0)[:, 0], mass, rtol=1e-12)
        if not known and entries > 1:
            second = np.sqrt(np.partition(squares, 1, axis=1)[:, 1])
            np.testing.assert_allclose(job.lower, second, rtol=2e-6)
