"""The scalar k-means against brute force, an O(K n²) solver in rationals, and its own promises."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from palette_core.builtins.clusterers.kmeans1d.clusterer import KMeans1d
from palette_core.builtins.clusterers.kmeans1d.options import KMeans1dOptions
from palette_core.plugins import ClusterProblem

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def fit(points, k, importance=None, resolution=None, exact=False):
    points = torch.as_tensor(points)
    points = points.reshape(-1, points.shape[-1], 1)
    if importance is not None:
        importance = torch.as_tensor(importance, dtype=torch.float32).reshape(points.shape)
    problem = ClusterProblem(points, k, importance, resolution=resolution)
    return KMeans1d(KMeans1dOptions(exact=exact)).fit(problem)


def rational_optimum(values, weights, k):
    """Least cost of k clusters by dynamic programming over all cuts, without rounding."""
    total = {}
    for v, w in zip(values, weights, strict=True):
        total[Fraction(v)] = total.get(Fraction(v), 0) + Fraction(w)
    x = sorted(v for v in total if total[v] > 0)
    sums = [(Fraction(0),) * 3]
    for v in x:
        a, b, c = sums[-1]
        sums.append((a + total[v], b + total[v] * v, c + total[v] * v * v))

    def cost(i, j):
        a, b, c = (q - p for p, q in zip(sums[i], sums[j], strict=True))
        return c - b * b / a

    best = [Fraction(0)] + [None] * len(x)
    for _ in range(min(k, len(x))):
        best = [None] + [
            min(best[i] + cost(i, j) for i in range(j) if best[i] is not None)
            if any(best[i] is not None for i in range(j))
            else None
            for j in range(1, len(x) + 1)
        ]
    return best[-1]


def grouped_cost(values, weights, codes):
    """Cost of the clusters that the codes make, each about its own mean, without rounding."""
    groups = {}
    for v, w, c in zip(values, weights, codes, strict=True):
        a, b, q = groups.get(c, (0, 0, 0))
        x, m = Fraction(v), Fraction(w)
        groups[c] = (a + m, b + m * x, q + m * x * x)
    return sum(q - b * b / a for a, b, q in groups.values() if a > 0)


def sse(codebook, points, weights=None):
    points = torch.as_tensor(points).reshape(codebook.codes.shape)
    error = (codebook.decode().squeeze(-1).double() - points.double()).square()
    return float((error if weights is None else error * weights).sum())


def float_values(width):
    plain = st.floats(-4, 4, width=width)
    return st.one_of(
        plain,
        plain,
        st.integers(-8, 8).map(float),
        st.floats(allow_nan=False, allow_infinity=False, width=width),
    )


weights_of = st.one_of(
    st.integers(0, 4).map(float),
    st.floats(0, 2, width=32),
    st.sampled_from([1e-30, 1e-12, 1.0, 1e6, 1e20]),
)


@st.composite
def problems(draw, width=32):
    values = draw(st.lists(float_values(width), min_size=1, max_size=14))
    weights = draw(
        st.one_of(st.none(), st.lists(weights_of, min_size=len(values), max_size=len(values)))
    )
    return values, weights, draw(st.integers(1, 8))


def effective(values, weights):
    weights = None if weights is None else np.asarray(weights, np.float32).astype(float)
    return np.ones(len(values)) if weights is None or not weights.any() else weights


def ulp_of(value: float) -> Fraction:
    """Distance to the next float32; of the largest, to the one below."""
    size = np.float32(abs(value))
    up = np.spacing(size)
    return Fraction(float(up if np.isfinite(up) else size - np.nextafter(size, np.float32(0))))


@settings(max_examples=400, deadline=None)
@given(problems())
@example(([1.0, 0.0, 0.0, -707106839724032.0, 0.0], [1.0, 0.0, 1.0, 1e-30, 0.0], 2))
def test_reaches_the_optimum(problem):
    values, weights, k = problem
    found = fit(torch.tensor([values], dtype=torch.float32), k, weights)
    counted = effective(values, weights)
    best = rational_optimum(values, counted, k)
    cost = grouped_cost(values, counted, found.codes[0].tolist())
    # Rounding of the centroids to float32 may move points between clusters.
    lut = found.lut[0, :, 0].tolist()
    ulp = max(ulp_of(e) for e in lut)
    rounding = sum(Fraction(float(w)) for w in counted) * ulp * ulp
    assert cost <= best * (1 + Fraction(1, 10**9)) + rounding


@settings(max_examples=150, deadline=None)
@given(problems(width=16), st.sampled_from([torch.float16, torch.bfloat16]))
def test_halves_reach_the_optimum(problem, dtype):
    values, weights, k = problem
    points = torch.tensor([values], dtype=dtype)
    found = fit(points, k, weights)
    counted = effective(values, weights)
    values = points[0].double().tolist()
    best = rational_optimum(values, counted, k)
    as_rounded = sum(
        Fraction(float(w)) * (Fraction(v) - Fraction(e)) ** 2
        for v, w, e in zip(values, counted, found.decode()[0, :, 0].double().tolist(), strict=True)
    )
    # The entries are rounded to the dtype: each is off by at most half a step.
    eps = Fraction(float(torch.finfo(dtype).eps))
    tiny = Fraction(float(torch.finfo(dtype).smallest_normal)) * eps
    off = sum(
        Fraction(float(w)) * (max(abs(Fraction(v)) for v in values) * eps + tiny) ** 2
        for w in counted
    )
    assert as_rounded <= best * (1 + Fraction(1, 10**9)) + off


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-6, 6), min_size=2, max_size=7), st.integers(2, 3))
def test_no_assignment_is_better(values, k):
    found = fit(torch.tensor([values], dtype=torch.float64), k)
    x = np.array(values, float)
    best = min(
        sum(((x[np.array(a) == c] - x[np.array(a) == c].mean()) ** 2).sum() for c in set(a))
        for a in itertools.product(range(k), repeat=len(values))
    )
    assert sse(found, torch.tensor([values])) <= best + 1e-9


@settings(max_examples=120, deadline=None)
@given(problems(), st.sampled_from(DTYPES))
def test_codes_are_nearest_and_ties_go_down(problem, dtype):
    values, weights, k = problem
    limit = torch.finfo(dtype).max
    points = torch.tensor([values], dtype=torch.float64).clamp(-limit, limit).to(dtype)
    points = points.clamp(-limit, limit)
    found = fit(points, k, weights)
    entries = [Fraction(e) for e in found.lut[0, :, 0].double().tolist()]
    assert torch.equal(found.lut.to(dtype).double(), found.lut.double())
    assert entries == sorted(entries)
    for value, code in zip(points[0].double().tolist(), found.codes[0].tolist(), strict=True):
        distances = [abs(Fraction(value) - e) for e in entries]
        scale = max(abs(Fraction(value)), *map(abs, entries)) / 10**15
        assert distances[code] <= min(distances) + scale
        assert all(d > distances[code] - scale for d in distances[:code])
        assert code == entries.index(entries[code])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("resolution", [4, None])
def test_few_distinct_values_come_back_exactly(dtype, resolution):
    values = torch.tensor([-3.0, -1e-3, 0.0, 0.5, 1e4]).to(dtype)
    points = values[torch.arange(70000) % 5][None]
    found = fit(points, 8, resolution=resolution)
    assert torch.equal(found.decode().squeeze(-1).to(dtype), points)
    assert found.lut[0, 4:, 0].tolist() == [float(values[-1])] * 4


def sample(kind, n, seed=0):
    rng = np.random.default_rng(seed)
    x = {
        "gaussian": lambda: rng.normal(size=n),
        "laplace": lambda: rng.laplace(size=n),
        "student": lambda: rng.standard_t(3, size=n),
        "outlier": lambda: np.append(rng.normal(size=n - 1), 1e5),
        "far mean": lambda: 1000 + 1e-3 * rng.normal(size=n),
        "two tight groups": lambda: np.concatenate(
            [1e-3 * rng.normal(size=n // 2), 1 + 1e-3 * rng.normal(size=n - n // 2)]
        ),
        "few far, many near": lambda: np.where(
            np.arange(n) < n // 50, np.sign(rng.normal(size=n)), 1e-5 * rng.normal(size=n)
        ),
        "mostly zero": lambda: rng.normal(size=n) * (rng.random(n) < 0.2),
        "sorted": lambda: np.sort(rng.normal(size=n)),
        "largest": lambda: np.append(rng.normal(size=n - 2) * 1e36, [3.4e38, -3.4e38]),
        "denormal": lambda: rng.normal(size=n) * 1e-41,
    }[kind]()
    return torch.from_numpy(x.astype(np.float32))[None]


KINDS = [
    "gaussian",
    "laplace",
    "student",
    "outlier",
    "far mean",
    "two tight groups",
    "few far, many near",
    "mostly zero",
    "sorted",
    "largest",
    "denormal",
]


def dense_optimum(values, weights, k):
    """Least cost of k clusters of distinct values: O(K n²), centred, in numpy."""
    x, where = np.unique(values.double().numpy(), return_inverse=True)
    w = np.bincount(where.ravel(), None if weights is None else weights.numpy().ravel())
    x = (x - np.median(x)) / np.abs(x).max()
    n = x.size
    best = np.zeros(n + 1)
    table = np.full((n + 1, n + 1), np.inf)
    for i in range(n):
        # about the first of each run, so that nothing large cancels
        d = x[i:] - x[i]
        a, b, c = np.cumsum(w[i:]), np.cumsum(w[i:] * d), np.cumsum(w[i:] * d * d)
        table[i, i + 1 :] = np.maximum(c - b * b / np.where(a > 0, a, 1), 0)
    best = table[0]
    for _ in range(1, k):
        best = np.min(best[:, None] + table, axis=0)
    return float(best[n]) * float(values.double().abs().max()) ** 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_against_a_dense_solver(kind, weighted):
    points = sample(kind, 600)
    rng = np.random.default_rng(1)
    weights = torch.from_numpy(rng.random((1, 600)).astype(np.float32) ** 4) if weighted else None
    for k in (2, 5, 16):
        best = dense_optimum(points, weights, k)
        cost = sse(fit(points, k, weights), points, weights)
        step = max(float(points.abs().max()) * 2**-24, 2.0**-150)  # half a unit of the LUT
        rounding = 600 * step * step
        assert cost <= best * (1 + 1e-9) + rounding


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "scale"),
    [
        ("gaussian", 1e-6),
        ("gaussian", 0.02),
        ("gaussian", 1e3),
        ("laplace", 0.02),
        ("student", 1.0),
        ("outlier", 0.02),
        ("two tight groups", 0.02),
        ("few far, many near", 1.0),
    ],
)
@pytest.mark.parametrize("k", [2, 16, 256])
def test_grid_against_sorting(kind, scale, k):
    """Fast within 0.1 %, and exact equal, to the solver over all distinct values."""
    points = sample(kind, 140_000) * scale
    step = max(float(points.abs().max()) * 2**-24, 2.0**-150)
    best = sse(fit(points.double(), k), points) + points.numel() * step * step
    assert sse(fit(points, k, resolution=4), points) <= best * (1 + 1e-4)
    assert sse(fit(points, k, resolution=1), points) <= best * (1 + 1e-3)
    assert sse(fit(points, k), points) <= best * (1 + 1e-9)
    assert sse(fit(points, k, resolution=1, exact=True), points) <= best * (1 + 1e-9)


@pytest.mark.parametrize("resolution", [4, None])
@pytest.mark.parametrize("k", [16, 256])
def test_weighted_grid_against_sorting(k, resolution):
    points = sample("gaussian", 140_000) * 0.02
    rng = np.random.default_rng(1)
    weights = torch.from_numpy(rng.exponential(size=points.shape).astype(np.float32) ** 3)
    weights[0, ::7] = 0.0
    best = sse(fit(points.double(), k, weights), points, weights)
    excess = 1e-3 if resolution else 1e-9
    assert sse(fit(points, k, weights, resolution), points, weights) <= best * (1 + excess)


def test_entries_are_the_means_of_their_points():
    points = sample("gaussian", 140_000)
    for resolution in (4, None):
        found = fit(points, 16, resolution=resolution)
        for c in range(16):
            mean = float(points[found.codes == c].double().mean())
            assert found.lut[0, c, 0].item() == pytest.approx(mean, rel=2e-7, abs=1e-7)
