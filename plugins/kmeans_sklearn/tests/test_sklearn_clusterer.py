"""The contract of a clusterer, judged by brute force and by plain arithmetic."""

from __future__ import annotations

import itertools
import random
import warnings
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info
from torch import Tensor

from kmeans_sklearn.hooks import palette_core_clusterers
from palette_core.errors import PluginOptionsError, WeightError
from palette_core.plugins import ClustererEntry, ClusterProblem, validate_options
from palette_core.tensors import Codebook

NAMES = ("sklearn_kmeans", "sklearn_minibatch")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@cache
def entry_named(name: str) -> ClustererEntry:
    return next(e for e in palette_core_clusterers() if e.name == name)


def fit(problem: ClusterProblem, name: str = "sklearn_kmeans", **options: object) -> Codebook:
    entry = entry_named(name)
    codebook = entry.factory(validate_options(entry, options)).fit(problem)
    blocks, count, dim = problem.points.shape
    assert codebook.lut.shape == (blocks, problem.n_entries, dim)
    assert codebook.lut.dtype in (torch.float32, torch.float64)
    assert codebook.codes.shape == (blocks, count)
    assert codebook.codes.dtype == torch.uint8
    assert int(codebook.codes.max()) < problem.n_entries
    assert bool(torch.isfinite(codebook.lut).all())
    return codebook


def normal(*shape: int, seed: int = 0, scale: float = 1.0, dtype=torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def distances(points: Tensor, lut: Tensor) -> np.ndarray:
    """Squared distances ``[N, K]`` of one block in 128-bit or 80-bit floats, by definition."""
    p = points.double().numpy().astype(np.longdouble)
    c = lut.double().numpy().astype(np.longdouble)
    return ((p[:, None, :] - c[None, :, :]) ** 2).sum(-1)


def loss(points: Tensor, codebook: Codebook, importance: Tensor | None = None) -> float:
    error = (points.double() - codebook.decode().double()).square().sum(-1)
    return float((error if importance is None else error * importance[..., 0].double()).sum())


def best_loss(points: list[float], weights: list[float], k: int) -> float:
    """Optimal weighted scalar k-means: every way to cut the sorted points into k runs."""
    order = np.argsort(points, kind="stable")
    x, w = np.asarray(points, np.float64)[order], np.asarray(weights, np.float64)[order]

    def cost(first: int, last: int) -> float:
        part, heavy = x[first:last], w[first:last]
        if heavy.sum() == 0:
            return 0.0
        return float((heavy * (part - np.average(part, weights=heavy)) ** 2).sum())

    cuts = itertools.combinations(range(1, len(x)), min(k, len(x)) - 1)
    return min(
        sum(cost(a, b) for a, b in itertools.pairwise((0, *inner, len(x)))) for inner in cuts
    )


def best_vector_loss(points: np.ndarray, k: int) -> float:
    """Optimal vector k-means of a few points: every assignment of points to entries."""
    best = np.inf
    for codes in itertools.product(range(k), repeat=len(points) - 1):
        labels = np.array((0, *codes))  # entries are interchangeable, so the first gets 0
        groups = (points[labels == c] for c in range(k))
        total = sum(((g - g.mean(0)) ** 2).sum() for g in groups if len(g))
        best = min(best, total)
    return float(best)


def spy_on(monkeypatch, name, before_fit=lambda: None) -> dict[str, object]:
    """Arguments that reach the estimator of scikit-learn, once ``fit`` has run."""
    import kmeans_sklearn.clusterer as module

    estimator = "KMeans" if name == "sklearn_kmeans" else "MiniBatchKMeans"
    original, seen = getattr(module, estimator), {}

    def spy(k, **arguments):
        seen.update(arguments)
        before_fit()
        return original(k, **arguments)

    monkeypatch.setattr(module, estimator, spy)
    return seen


# --- what comes back -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 2, 4])
def test_codes_are_nearest_to_the_stored_entries(name, dtype, dim):
    points = normal(3, 200, dim, scale=0.02, dtype=dtype)
    codebook = fit(ClusterProblem(points, 8), name)
    for block in range(3):
        d = distances(points[block], codebook.lut[block].to(dtype))
        chosen = d[np.arange(200), codebook.codes[block].numpy()]
        assert (chosen <= d.min(1) * (1 + 1e-12)).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scalar_entries_ascend(name, dtype):
    lut = fit(ClusterProblem(normal(4, 300, 1, dtype=dtype), 16), name).lut
    assert bool((lut.diff(dim=1) >= 0).all())


@pytest.mark.parametrize("dim", [1, 2])
def test_entries_are_weighted_means_of_their_points(dim):
    points, importance = normal(1, 500, dim), uniform(1, 500, 1).expand(1, 500, dim)
    codebook = fit(ClusterProblem(points, 4, importance), tol=0.0)
    for entry in range(4):
        mine = codebook.codes[0] == entry
        mean = np.average(points[0, mine].double(), axis=0, weights=importance[0, mine, 0])
        np.testing.assert_allclose(codebook.lut[0, entry], mean, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_few_distinct_points_are_exact_and_spare_entries_repeat(name, dim, dtype):
    distinct = torch.tensor([-0.7, 1e-3, 0.0, 3.0, 65000.0]).to(dtype).sort().values
    rows = distinct[:, None].expand(5, dim)
    points = rows[torch.arange(60) % 5][None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codebook = fit(ClusterProblem(points, 8), name)
    assert torch.equal(codebook.decode().to(dtype), points)
    assert torch.equal(codebook.lut[0, :5].to(dtype), rows)
    assert torch.equal(codebook.lut[0, 5:], codebook.lut[0, 4:5].expand(3, dim))


@pytest.mark.parametrize("name", NAMES)
def test_one_point_and_constants(name):
    for points in (
        torch.full((2, 1, 1), 3.5),
        torch.zeros(2, 70, 2),
        torch.full((1, 70, 1), -1e-40),
    ):
        assert torch.equal(fit(ClusterProblem(points, 16), name).decode(), points)


@pytest.mark.parametrize("name", NAMES)
def test_hardly_more_distinct_points_than_entries_warns_of_nothing(name):
    points = torch.tensor([0.0, 1e-30, 1.0, 1.0 + 2**-23, 1e30])[None, :, None].repeat(1, 9, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(ClusterProblem(points, 4), name)


def test_points_far_from_zero_keep_their_differences():
    near = normal(1, 400, 1, scale=1e-3, dtype=torch.float64)
    apart = fit(ClusterProblem(near + 1000, 8))
    assert loss(near + 1000, apart) == pytest.approx(
        loss(near, fit(ClusterProblem(near, 8))), rel=1e-4
    )


@pytest.mark.parametrize("scale", [2.0**-600, 2.0**-140, 2.0**-20, 2.0**100, 2.0**600])
def test_scaling_by_a_power_of_two_scales_the_entries(scale):
    points = normal(2, 300, 2).round(decimals=2).double()
    small = fit(ClusterProblem(points * scale, 8))
    plain = fit(ClusterProblem(points, 8))
    assert torch.equal(small.lut, plain.lut * scale)
    assert torch.equal(small.codes, plain.codes)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_points_that_are_not_finite_are_refused(bad):
    points = torch.tensor([0.0, 1.0, bad])[None, :, None]
    with pytest.raises(WeightError, match="NaN or infinity"):
        fit(ClusterProblem(points, 2))


# --- against brute force -------------------------------------------------------------------------

values = st.lists(
    st.floats(-100, 100, width=16, allow_subnormal=False), min_size=2, max_size=9, unique=True
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(points=values, k=st.sampled_from([2, 4]), data=st.data())
def test_scalar_loss_is_near_the_optimum(points, k, data):
    heavy = st.lists(st.integers(1, 9), min_size=len(points), max_size=len(points))
    weights = [float(w) for w in data.draw(heavy)]
    x, w = torch.tensor(points).reshape(1, -1, 1), torch.tensor(weights).reshape(1, -1, 1)
    found = loss(x, fit(ClusterProblem(x, k, w), n_init=30, tol=0.0), w)
    best = best_loss(points, weights, k)
    assert found >= best * (1 - 1e-6) - 1e-9
    assert found <= best * 1.25 + 1e-6  # local optima exist; 30 starts on 9 points leave few


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), k=st.sampled_from([2, 4]))
def test_vector_loss_is_near_the_optimum(seed, k):
    points = normal(1, 6, 2, seed=seed)
    found = loss(points, fit(ClusterProblem(points, k), n_init=30, tol=0.0))
    best = best_vector_loss(points[0].double().numpy(), k)
    assert found >= best * (1 - 1e-6)
    assert found <= best * 1.1 + 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [1, 2])
def test_never_worse_than_one_mean_and_better_with_more_entries(name, dim):
    points = normal(1, 2000, dim)
    one = float((points.double() - points.double().mean(1, keepdim=True)).square().sum())
    losses = [loss(points, fit(ClusterProblem(points, k), name)) for k in (2, 4, 8, 16)]
    assert all(later < earlier for earlier, later in itertools.pairwise([one, *losses]))


def test_mini_batches_come_close_to_full_batches():
    points = normal(1, 50_000, 1)
    full = loss(points, fit(ClusterProblem(points, 64), n_init=1))
    mini = loss(points, fit(ClusterProblem(points, 64), "sklearn_minibatch"))
    assert mini < 1.1 * full


# --- importance ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [1, 2])
def test_ones_are_the_same_as_no_importance(name, dim):
    points = normal(2, 300, dim, dtype=torch.float16)
    plain = fit(ClusterProblem(points, 8), name)
    ones = fit(ClusterProblem(points, 8, torch.ones(2, 300, dim)), name)
    assert torch.equal(plain.lut, ones.lut)
    assert torch.equal(plain.codes, ones.codes)


@pytest.mark.parametrize("name", NAMES)
def test_importance_has_no_unit(name):
    points, importance = normal(1, 300, 1), uniform(1, 300, 1)
    plain = fit(ClusterProblem(points, 8, importance), name)
    tiny = fit(ClusterProblem(points, 8, importance * 2.0**-60), name)
    assert torch.equal(plain.lut, tiny.lut)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [1, 2])
def test_points_of_no_importance_are_assigned_and_otherwise_ignored(name, dim):
    points = normal(1, 400, dim)
    importance = (torch.arange(400) % 2 == 0).float().reshape(1, 400, 1).expand(1, 400, dim)
    away = torch.where(importance > 0, points, points + 50)
    heard = fit(ClusterProblem(points[:, ::2], 8), name)
    both = fit(ClusterProblem(away, 8, importance), name)
    assert torch.equal(both.lut, heard.lut)
    assert torch.equal(both.codes[:, ::2], heard.codes)
    nearest = torch.from_numpy(distances(away[0, 1::2], both.lut[0]).argmin(1))
    assert torch.equal(both.codes[0, 1::2].long(), nearest)


@pytest.mark.parametrize("name", NAMES)
def test_all_importance_zero_counts_as_none(name):
    points = normal(1, 100, 1)
    zero = fit(ClusterProblem(points, 4, torch.zeros(1, 100, 1)), name)
    assert torch.equal(zero.lut, fit(ClusterProblem(points, 4), name).lut)


def test_whole_importance_is_repetition():
    # 16-bit scalars are merged before clustering, so the two problems become one and the same.
    points = normal(1, 200, 1, dtype=torch.float16)
    times = torch.arange(200) % 4 + 1
    repeated = points[0].repeat_interleave(times, dim=0)[None]
    weighted = fit(ClusterProblem(points, 8, times.float().reshape(1, -1, 1)))
    np.testing.assert_allclose(weighted.lut, fit(ClusterProblem(repeated, 8)).lut, rtol=1e-6)


def test_importance_moves_the_entries():
    points = torch.tensor([0.0, 1.0, 10.0, 11.0]).reshape(1, 4, 1)
    importance = torch.tensor([3.0, 1.0, 1.0, 3.0]).reshape(1, 4, 1)
    lut = fit(ClusterProblem(points, 2, importance), n_init=10).lut
    torch.testing.assert_close(lut.flatten(), torch.tensor([0.25, 10.75]))


# --- reproducible, and no side effects -----------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [1, 2])
def test_same_seed_same_result_other_seed_other_result(name, dim):
    points = normal(2, 3000, dim)
    first, again, other = (fit(ClusterProblem(points, 32, seed=s), name) for s in (7, 7, 2**62))
    assert torch.equal(first.lut, again.lut)
    assert torch.equal(first.codes, again.codes)
    assert not torch.equal(first.lut, other.lut)


@pytest.mark.parametrize("name", NAMES)
def test_scikit_learn_gets_one_thread_and_the_others_are_given_back(name, monkeypatch):
    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info()]

    during = []
    spy_on(monkeypatch, name, lambda: during.extend(threads()))
    before = threads()
    fit(ClusterProblem(normal(1, 100, 1), 4), name)
    assert set(during) == {1}
    assert threads() == before


@pytest.mark.parametrize("name", NAMES)
def test_a_block_does_not_depend_on_those_after_it(name):
    points = normal(3, 400, 1)
    together, first = (fit(ClusterProblem(p, 8, seed=3), name) for p in (points, points[:1]))
    assert torch.equal(together.lut[:1], first.lut)
    assert torch.equal(together.codes[:1], first.codes)


def test_every_block_has_a_seed_of_its_own():
    lut = fit(ClusterProblem(normal(1, 3000, 1).repeat(2, 1, 1), 32), n_init=1).lut
    assert not torch.equal(lut[0], lut[1])


@pytest.mark.parametrize("name", NAMES)
def test_inputs_and_global_random_states_are_left_alone(name):
    points, importance = normal(2, 300, 2), uniform(2, 300, 2)
    kept = points.clone(), importance.clone()
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    fit(ClusterProblem(points, 8, importance), name)
    assert torch.equal(points, kept[0])
    assert torch.equal(importance, kept[1])
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])


def test_strided_points_are_taken_as_they_are():
    weight = normal(64, 32)
    points = weight.t().reshape(1, 32 * 64, 1)
    strided = weight.as_strided((1, 64, 1), (0, 32, 1))
    for problem in (points, strided):
        again = fit(ClusterProblem(problem.contiguous().clone(), 4))
        assert torch.equal(fit(ClusterProblem(problem, 4)).lut, again.lut)


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sklearn_kmeans", {"algorithm": "elkan"}),
        ("sklearn_kmeans", {"init": "random", "n_init": 1, "max_iter": 1, "tol": 0.5}),
        ("sklearn_minibatch", {"batch_size": 64, "max_no_improvement": None, "max_iter": 2}),
        ("sklearn_minibatch", {"init": "random", "tol": 0.1, "reassignment_ratio": 0.01}),
    ],
)
def test_every_option_reaches_scikit_learn(name, options, monkeypatch):
    seen = spy_on(monkeypatch, name)
    fit(ClusterProblem(normal(1, 300, 1), 8), name, **options)
    assert {key: seen[key] for key in options if key != "tol"} == {
        key: value for key, value in options.items() if key != "tol"
    }
    assert seen["tol"] == pytest.approx(options.get("tol", entry_named(name).options().tol))


def test_tol_is_relative_to_the_variance_of_the_points_as_they_weigh(monkeypatch):
    seen = spy_on(monkeypatch, "sklearn_kmeans")
    distinct = normal(50, 1, dtype=torch.float16)
    repeated = distinct.repeat_interleave(torch.arange(50) % 7 + 1, dim=0)
    fit(ClusterProblem(repeated[None], 8), tol=0.01)
    # Merged before clustering, so scikit-learn sees, and measures, the distinct ones only.
    variance = distinct.double().unique().var(correction=0)
    wanted = 0.01 * repeated.double().var(correction=0)
    assert float(seen["tol"] * variance) == pytest.approx(float(wanted))


def test_elkan_and_lloyd_agree():
    points = normal(1, 2000, 2)
    both = [fit(ClusterProblem(points, 8), algorithm=a).lut for a in ("lloyd", "elkan")]
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sklearn_kmeans", {"ninit": 3}, "unknown option 'ninit'; did you mean 'n_init'"),
        ("sklearn_kmeans", {"n_init": 0}, "n_init=0"),
        ("sklearn_kmeans", {"algorithm": "full"}, "algorithm='full'"),
        ("sklearn_kmeans", {"batch_size": 10}, "unknown option 'batch_size'"),
        ("sklearn_minibatch", {"reassignment_ratio": 1}, "reassignment_ratio=1"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    entry = entry_named(name)
    with pytest.raises(PluginOptionsError, match=message):
        validate_options(entry, options)


@pytest.mark.parametrize("name", NAMES)
def test_options_survive_json_and_are_described(name):
    model = entry_named(name).options
    options = model()
    assert model.model_validate_json(options.model_dump_json()) == options
    assert all(field.description for field in model.model_fields.values())
