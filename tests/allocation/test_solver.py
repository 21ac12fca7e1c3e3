"""The knapsack solver against brute force and against scipy's MILP."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, milp

from palette_core.allocation.solver import Choices, curve, solve
from palette_core.errors import AllocationError


def choices(rows: list[tuple[int, float]]) -> Choices:
    return Choices(np.array([r[0] for r in rows]), np.array([r[1] for r in rows], float))


problems = st.lists(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 60).map(lambda v: v / 4)),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=5,
)


@given(problems, st.integers(0, 200))
@settings(max_examples=400, deadline=None)
def test_brute_force_finds_nothing_better(rows, budget):
    tensors = [choices(r) for r in rows]
    best = min(
        (
            (sum(loss for _, loss in pick), sum(size for size, _ in pick))
            for pick in itertools.product(*rows)
            if sum(size for size, _ in pick) <= budget
        ),
        default=None,
    )
    if best is None:
        with pytest.raises(AllocationError, match="smallest candidates"):
            solve(tensors, budget)
        return
    found = solve(tensors, budget)
    assert (found.loss, found.size) == best
    assert found.size <= budget
    picked = [rows[i][j] for i, j in enumerate(found.chosen)]
    assert sum(size for size, _ in picked) == found.size
    assert sum(loss for _, loss in picked) == pytest.approx(found.loss)
    assert found.bound <= best[0] + 1e-9


def like_a_model(rng: np.random.Generator, count: int) -> list[Choices]:
    """Sizes and losses as bits 2, 3, 4, 6 and 8 of layers of very different sizes give them."""
    bits = np.array([2, 3, 4, 6, 8])
    tensors = []
    for _ in range(count):
        elements = int(rng.integers(1, 400)) * 1024
        luts = int(rng.integers(1, 64))
        scale = float(np.exp(rng.normal(0, 2)))
        noise = np.exp(rng.normal(0, 0.2, len(bits)))
        tensors.append(Choices(elements * bits + luts * 32 * 2**bits, scale * noise * 4.0**-bits))
    return tensors


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("target", [2.5, 3.5, 5.0])
def test_milp_agrees_on_whole_models(seed, target):
    tensors = like_a_model(np.random.default_rng(seed), 120)
    elements = sum(int(t.sizes[1] - t.sizes[0]) for t in tensors)
    budget = int(target * elements)
    found = solve(tensors, budget)
    sizes = np.concatenate([t.sizes for t in tensors]).astype(float)
    losses = np.concatenate([t.losses for t in tensors])
    one_each = np.kron(np.eye(len(tensors)), np.ones(5))
    result = milp(
        losses / losses.max(),
        integrality=np.ones(len(sizes)),
        bounds=(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(sizes[None] / budget, -np.inf, 1.0),
        ],
        options={"mip_rel_gap": 1e-9, "time_limit": 20},
    )
    assert found.size <= budget
    assert found.loss <= result.fun * losses.max() * (1 + 1e-7)
    assert found.bound <= found.loss <= found.bound + losses.max()


def test_the_curve_falls_and_reaches_both_ends():
    tensors = like_a_model(np.random.default_rng(9), 30)
    points = curve(tensors, 12)
    assert points[0].size == sum(int(t.sizes.min()) for t in tensors)
    assert points[-1].loss == pytest.approx(sum(float(t.losses.min()) for t in tensors))
    assert all(a.size < b.size and a.loss > b.loss for a, b in itertools.pairwise(points))


def test_equal_candidates_and_one_tensor():
    same = choices([(5, 1.0), (5, 1.0)])
    assert solve([same], 5).size == 5
    assert solve([same, same], 10).loss == 2.0
    assert curve([same])[0].size == 5
    with pytest.raises(AllocationError, match="budget of 4"):
        solve([same], 4)


wide = st.builds(
    lambda digits, exponent: digits * 10.0**exponent, st.integers(0, 999), st.integers(-18, 4)
)
wide_problems = st.lists(
    st.lists(st.tuples(st.integers(0, 40) | st.integers(0, 10**9), wide), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


@given(wide_problems, st.data())
@settings(max_examples=250, deadline=None)
def test_losses_and_sizes_of_all_magnitudes(rows, data):
    """Against brute force in exact fractions; budgets are often met to the bit."""
    sizes = [[size for size, _ in row] for row in rows]
    budget = sum(data.draw(st.sampled_from(row)) for row in sizes)
    found = solve([choices(r) for r in rows], budget)
    fits = [
        (sum(Fraction(loss) for _, loss in pick), sum(size for size, _ in pick))
        for pick in itertools.product(*rows)
        if sum(size for size, _ in pick) <= budget
    ]
    picked = [rows[i][j] for i, j in enumerate(found.chosen)]
    best, loss = min(fits)[0], sum(Fraction(loss) for _, loss in picked)
    assert found.size == sum(size for size, _ in picked) <= budget
    # Losses that only the rounding of five numbers tells apart are equal; then size decides.
    assert loss <= best * (1 + Fraction(1, 10**14))
    equal = [size for loss, size in fits if loss <= best * (1 + Fraction(1, 2**53))]
    assert found.size <= min(equal)
    assert found.bound <= found.loss


def test_sums_that_differ_by_rounding_are_equal():
    # 0.1 + 0.2 is not 0.3 to a float.
    rows = [[(9, 0.1), (5, 0.3)], [(1, 0.2), (4, 0.0)]]
    assert solve([choices(r) for r in rows], 10).size == 9
    assert solve([choices(r) for r in rows], 40).chosen == (0, 1)


@pytest.mark.parametrize(
    ("rows", "budget"),
    [
        (
            [
                [(20, 2.516e-05), (11, 2.295e-05), (0, 7.2e-05)],
                [(780224917, 6.5e-10)],
                [(4, 7e-17)],
                [(9, 1), (23, 0), (22, 2)],
            ],
            780224940,
        ),
        (
            [
                [(113246720, 0.002172301120276836)],
                [
                    (9248, 0.04122537800241277),
                    (13936, 0.010306344500603193),
                    (18752, 0.002576586125150798),
                    (29408, 0.0001610366328219249),
                    (44672, 1.0064789551370306e-05),
                ],
                [
                    (5812, 0.011424608595300097),
                    (8782, 0.002856152148825024),
                    (11880, 0.000714038037206256),
                    (19100, 4.4627377325391e-05),
                    (30928, 2.7892110828369377e-06),
                ],
                [
                    (678, 0.037831477676722416),
                    (1081, 0.009457869419180604),
                    (1612, 0.002364467354795151),
                    (3698, 0.00014777920967469694),
                    (10392, 9.236200604668559e-06),
                ],
            ],
            113262458,
        ),
    ],
)
def test_little_tensors_beside_a_large_one(rows, budget):
    found = solve([choices(r) for r in rows], budget)
    fits = [p for p in itertools.product(*rows) if sum(size for size, _ in p) <= budget]
    assert found.loss == pytest.approx(min(sum(x for _, x in p) for p in fits), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-16, 1.0, 1e300])
def test_the_unit_of_losses_does_not_matter(scale):
    tensors = like_a_model(np.random.default_rng(3), 60)
    budget = int(sum(t.sizes.mean() for t in tensors) * 0.7)
    scaled = [Choices(t.sizes, t.losses * scale) for t in tensors]
    assert solve(scaled, budget).chosen == solve(tensors, budget).chosen


def test_a_budget_beyond_everything():
    tensors = like_a_model(np.random.default_rng(3), 3)
    assert solve(tensors, 10**300).loss == pytest.approx(
        sum(float(t.losses.min()) for t in tensors)
    )
