"""How few cells the proof of the optimum opens, and the sums it rests on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from palette_core.builtins.clusterers.kmeans1d import floats, proof
from palette_core.builtins.clusterers.kmeans1d.floats import fit_floats
from palette_core.builtins.clusterers.kmeans1d.sorted_fit import fit_sorted


def test_the_proof_leaves_most_cells_closed_and_the_optimum_in_the_others(monkeypatch):
    points = torch.randn(1, 1 << 18, generator=torch.Generator().manual_seed(1))
    seen = []

    def watched(w, x, cell, *others):
        found = proof.may_hold_a_cut(w, x, cell, *others)
        seen.append(found.size / (cell >= 0).sum())
        return found

    monkeypatch.setattr(floats, "may_hold_a_cut", watched)
    lut, codes = fit_floats(points, None, 64, None)
    best, its_codes = fit_sorted(points, None, 64)
    assert torch.equal(lut, best)
    assert torch.equal(codes, its_codes)
    # Of 4,100 points for each entry on either side of a boundary, a few hundred.
    assert 0.0 < seen[0] < 0.2


@pytest.mark.parametrize("count", [1, 7, 300])
def test_the_integral_is_that_of_the_largest_value_but_for_the_edges_of_bins(count):
    rng = np.random.default_rng(count)
    values, first = rng.random(count), rng.normal(size=count)
    last = first + rng.random(count)
    fine = np.linspace(-2.0, 2.0, 100_001)
    fine = 0.5 * (fine[1:] + fine[:-1])
    inside = (first[:, None] <= fine) & (fine <= last[:, None])
    exact = np.where(inside, values[:, None], 0.0).max(axis=0).mean() * 4.0
    found = proof._integral(values, first, last, (-2.0, 2.0))
    # Each of the bins at the two ends of what a value reaches may count in full.
    assert exact <= found + 1e-4 <= exact + 2 * count * 4.0 / proof._RUNS + 1e-3
