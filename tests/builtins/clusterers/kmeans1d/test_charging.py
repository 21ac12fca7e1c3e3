"""Best partitions at a charge for each segment, beside a plain dynamic programme."""

from __future__ import annotations

import numpy as np
import pytest

from palette_core.builtins.clusterers.kmeans1d.charging import charged
from palette_core.builtins.clusterers.kmeans1d.costs import merged_moments
from palette_core.builtins.clusterers.kmeans1d.solver import sums_of


def by_hand(w: np.ndarray, x: np.ndarray, charge: float) -> np.ndarray:
    """Return the best charged cost of the first j atoms, each segment's cost about its mean."""
    total = np.zeros(x.size + 1)
    for j in range(1, x.size + 1):
        costs = []
        for i in range(j):
            mean = np.average(x[i:j], weights=w[i:j])
            costs.append(total[i] + float((w[i:j] * (x[i:j] - mean) ** 2).sum()) + charge)
        total[j] = min(costs)
    return total


@pytest.mark.slow
@pytest.mark.parametrize("charge", [1e-6, 1e-3, 0.1, 5.0])
@pytest.mark.parametrize("form", [sums_of, merged_moments])
@pytest.mark.parametrize("spread", [0.0, 4.0])
def test_totals_are_those_of_a_plain_programme(form, charge: float, spread: float) -> None:
    rng = np.random.default_rng(int(spread))
    x = np.unique(rng.normal(size=150))
    x = np.concatenate([x, x[-1] + 1.0 + np.arange(1, 30) * 1e-7])  # nearly equal ones, too
    w = 10.0 ** rng.uniform(-spread, spread, x.size)
    n = x.size
    total, back = np.empty(n + 1), np.zeros(n + 1, np.int32)
    count = charged(form(w, x), n, charge, total, back, np.empty((2, n + 1), np.int32))
    # What running sums lose is a share of the whole.
    blur = 1e-13 * float((w * x * x).sum()) if form is sums_of else 0.0
    np.testing.assert_allclose(total, by_hand(w, x, charge), rtol=1e-9, atol=blur)
    at, cost, segments = n, 0.0, 0
    while at > 0:
        i = int(back[at])
        mean = np.average(x[i:at], weights=w[i:at])
        cost += float((w[i:at] * (x[i:at] - mean) ** 2).sum()) + charge
        at, segments = i, segments + 1
    assert segments == count
    assert cost == pytest.approx(total[n], rel=1e-9, abs=blur)


def with_divisions(sums: np.ndarray, n: int, charge: float) -> tuple[list[float], list[int]]:
    """Return what the queue of candidates comes to where each comparison is of two costs."""

    def cost(i: int, j: int) -> float:
        w, s, q = (float(a) for a in sums[j] - sums[i])
        return 0.0 if j == i + 1 else max(q - s * s / w, 0.0)

    def beats(b: int, j: int, p: int) -> bool:
        return total[j] + cost(j, p) <= total[b] + cost(b, p)

    total, back, queue, head = [0.0], [0], [(0, 1)], 0
    for j in range(1, n + 1):
        while head + 1 < len(queue) and queue[head + 1][1] <= j:
            head += 1
        i = queue[head][0]
        total.append(total[i] + cost(i, j) + charge)
        back.append(i)
        high = n + 1
        while len(queue) - 1 > head and queue[-1][1] > j and beats(queue[-1][0], j, queue[-1][1]):
            high = queue.pop()[1]
        b, low = queue[-1][0], max(j, queue[-1][1])
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if beats(b, j, middle) else (middle, high)
        if high <= n:
            queue.append((j, high))
    return total, back


@pytest.mark.parametrize("charge", [1e-3, 0.5, 8.0, 300.0])
@pytest.mark.parametrize("even", [True, False])
def test_comparisons_without_divisions_decide_as_those_with_them(charge: float, even: bool) -> None:
    n = 400
    x = np.arange(n) - n / 2  # every shift of a partition costs the same, to the last bit
    w = np.ones(n)
    if not even:
        rng = np.random.default_rng(0)
        x, w = np.sort(rng.normal(size=n)), rng.uniform(0.1, 3.0, n)
    sums, total, back = sums_of(w, x), np.empty(n + 1), np.zeros(n + 1, np.int32)
    charged(sums, n, charge, total, back, np.empty((2, n + 1), np.int32))
    right_total, right_back = with_divisions(sums, n, charge)
    assert total.tolist() == right_total
    assert back.tolist() == right_back
