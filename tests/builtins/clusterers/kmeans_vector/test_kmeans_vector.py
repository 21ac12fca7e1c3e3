"""Vector k-means against exhaustive search, scikit-learn and plain numpy."""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

from palette_core.builtins.clusterers.kmeans_vector.clusterer import (
    KMeansVector,
    KMeansVectorOptions,
    fit_in_torch,
)
from palette_core.errors import ClusteringError
from palette_core.plugins import ClusterProblem
from palette_core.tensors.codebook import Codebook

MANY = KMeansVectorOptions(restarts=30)
ENGINES = {
    "cpu": lambda problem, options: KMeansVector(options).fit(problem),
    "torch": fit_in_torch,
}
both_engines = pytest.mark.parametrize(
    "engine", ["cpu", pytest.param("torch", marks=pytest.mark.slow)]
)


def fit(points, entries, weights=None, seed=0, options=None, engine="cpu"):
    problem = ClusterProblem(points, entries, importance=weights, seed=seed)
    if options is None:
        # Operation by operation on a CPU the torch engine is slow: little searching will do.
        few = {"restarts": 1, "swaps": 1, "max_iter": 60} if engine == "torch" else {}
        options = KMeansVectorOptions(**few)
    return ENGINES[engine](problem, options)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sse(points, weights, codebook):
    """Σ w (x − c)² per block with the LUT as cast, in numpy."""
    x = points.double().numpy()
    w = np.ones_like(x) if weights is None else weights.double().numpy()
    table = codebook.lut.to(points.dtype).double().numpy()
    picked = np.stack([t[c] for t, c in zip(table, codebook.codes.numpy(), strict=True)])
    return (w * (x - picked) ** 2).sum(axis=(1, 2))


def optimum(x, w, entries):
    """The smallest Σ w (x − c)² over all ways to split the points, by trying them all."""
    best = np.inf
    for labels in itertools.product(range(entries), repeat=len(x)):
        if labels[0] != 0:
            break
        total = 0.0
        for k in set(labels):
            member = np.array(labels) == k
            mass = w[member].sum(axis=0)
            mean = (w[member] * x[member]).sum(axis=0) / np.where(mass > 0, mass, 1)
            total += (w[member] * (x[member] - mean) ** 2).sum()
        best = min(best, total)
    return best


small_points = st.integers(1, 3).flatmap(
    lambda dim: st.lists(
        st.tuples(*[st.integers(-8, 8)] * dim, *[st.integers(0, 5)] * dim),
        min_size=1,
        max_size=6,
    )
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=small_points, entries=st.sampled_from([2, 3]), weighted=st.booleans())
def test_finds_the_optimum_of_small_problems(rows, entries, weighted):
    dim = len(rows[0]) // 2
    points = torch.tensor([[row[:dim] for row in rows]], dtype=torch.float32)
    weights = torch.tensor([[row[dim:] for row in rows]], dtype=torch.float32)
    if not weighted or not bool(weights.any()):
        weights = None
    check_optimum(points, weights, entries, fit(points, entries, weights, options=MANY))


def test_torch_engine_finds_the_optimum_of_small_problems():
    points = normal(6, 6, 2)
    weights = normal(6, 6, 1, seed=1).square().expand(-1, -1, 2)
    options = KMeansVectorOptions(restarts=8, swaps=0, max_iter=30)
    found = fit(points, 3, weights, options=options, engine="torch")
    for b in range(6):
        one = Codebook(found.lut[b : b + 1], found.codes[b : b + 1])
        check_optimum(points[b : b + 1], weights[b : b + 1], 3, one)


def check_optimum(points, weights, entries, codebook):
    x = points[0].double().numpy()
    w = np.ones_like(x) if weights is None else weights[0].double().numpy()
    best = optimum(x, w, entries)
    ours = sse(points, weights, codebook)[0]
    assert ours >= best - 1e-6 * max(1.0, best)
    assert ours <= best * (1 + 1e-6) + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("count", "dim", "entries"), [(4000, 2, 16), (6000, 4, 16), (9000, 2, 64)])
def test_no_worse_than_scikit_learn(count, dim, entries, weighted):
    points = normal(1, count, dim)
    weight = torch.rand(1, count, 1, generator=torch.Generator().manual_seed(1)) ** 2
    weights = weight.expand(-1, -1, dim) if weighted else None
    ours = sse(points, weights, fit(points, entries, weights))[0]
    peer = [
        KMeans(entries, n_init=1, tol=1e-6, random_state=r).fit(
            points[0].numpy(), sample_weight=weight[0, :, 0].numpy() if weighted else None
        )
        for r in range(4)
    ]
    assert ours <= np.median([p.inertia_ for p in peer]) * 1.001


def test_finds_separate_blobs():
    x, _ = make_blobs(5000, n_features=3, centers=16, cluster_std=0.05, random_state=3)
    points = torch.tensor(x[None], dtype=torch.float32)
    peer = KMeans(16, n_init=10, random_state=0).fit(x).inertia_
    assert sse(points, None, fit(points, 16))[0] <= peer * (1 + 1e-4)


@pytest.mark.slow
@both_engines
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("count", "dim", "entries"), [(20000, 2, 16), (9000, 1, 8), (3000, 6, 16), (70000, 2, 4)]
)
def test_is_a_fixed_point(engine, count, dim, entries, weighted):
    if engine == "torch":
        count //= 4
    points = normal(1, count, dim)
    weights = normal(1, count, dim, seed=1).abs() ** 3 if weighted else None
    options = KMeansVectorOptions(restarts=1, swaps=1, tol=1e-7)
    codebook = fit(points, entries, weights, options=options, engine=engine)
    x, table = points[0].double().numpy(), codebook.lut[0].double().numpy()
    w = np.ones_like(x) if weights is None else weights[0].double().numpy()
    codes = codebook.codes[0].numpy()
    costs = (w[:, None] * (x[:, None] - table[None]) ** 2).sum(axis=2)
    assert costs[np.arange(count), codes] == pytest.approx(costs.min(axis=1), rel=1e-12)
    for k in range(entries):
        member = codes == k
        mean = (w[member] * x[member]).sum(axis=0) / w[member].sum(axis=0)
        assert table[k] == pytest.approx(mean, abs=2e-3)


@both_engines
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_few_distinct_points_are_kept_exactly(engine, dtype):
    distinct = torch.tensor([[0.1, -3.0], [0.0, 7e-5], [-0.0, 7e-5], [5e4, 1.0]], dtype=dtype)
    pick = torch.randint(4, (1, 20000), generator=torch.Generator().manual_seed(0))
    pick[0, :-1][pick[0, :-1] == 3] = 0
    pick[0, -1] = 3  # once among twenty thousand
    points = distinct[pick]
    codebook = fit(points, 8, engine=engine)
    decoded = codebook.decode().to(dtype)
    # Means of equal numbers, added up by matrix products, may be off in the last places.
    close = 1e-11 if engine == "torch" and dtype is torch.float64 else 0.0
    assert torch.allclose(decoded, points, rtol=close, atol=0.0)
    if close:
        return  # and two entries that differ so little are not one
    assert codebook.lut.shape == (1, 8, 2)
    assert torch.equal(codebook.lut[0, 3:], codebook.lut[0, 2:3].expand(5, -1))
    assert sorted(codebook.codes.unique().tolist()) == [0, 1, 2]


@both_engines
@pytest.mark.parametrize("second", [1.0, 2.0])
def test_points_without_weight_do_not_pull(engine, second):
    points = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [9.0, 9.0], [2.0, 2.0]]])
    weights = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 4, 1).repeat(1, 1, 2)
    weights[..., 1] *= second  # the same for all coordinates, or not
    codebook = fit(points, 2, weights, engine=engine)
    assert codebook.lut[0].tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert codebook.codes[0].tolist() == [0, 1, 1, 1]
    nothing = fit(points, 2, torch.zeros_like(points), engine=engine)
    assert torch.equal(nothing.lut, fit(points, 2, engine=engine).lut)


def test_same_bits_in_any_batch_and_at_any_thread_count():
    points = torch.cat([normal(3, 70000, 2), normal(3, 70000, 2, seed=1) * 5], dim=0)
    weights = normal(6, 70000, 2, seed=2).square()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        whole = fit(points, 16, weights, seed=7)
        torch.set_num_threads(1)
        again = fit(points, 16, weights, seed=7)
        part = fit(points[:2], 16, weights[:2], seed=7)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(whole.lut, again.lut)
    assert torch.equal(whole.codes, again.codes)
    assert torch.equal(whole.lut[:2], part.lut)
    assert torch.equal(whole.codes[:2], part.codes)


@both_engines
def test_global_random_states_are_left_alone(engine):
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = fit(normal(2, 500, 2), 8, seed=1, engine=engine)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    torch.manual_seed(99)
    again = fit(normal(2, 500, 2), 8, seed=1, engine=engine)
    assert torch.equal(first.lut, again.lut)
    assert torch.equal(first.codes, again.codes)


def test_weights_that_are_the_same_everywhere_change_nothing():
    points = normal(2, 3000, 2)
    plain = fit(points, 16)
    for size in (1.0, 1e-30, 1e30):
        weighted = fit(points, 16, torch.full_like(points, size))
        assert torch.equal(plain.lut, weighted.lut)
        assert torch.equal(plain.codes, weighted.codes)


@pytest.mark.parametrize("size", [1e-30, 1e3, 1e30])
def test_the_unit_of_weights_does_not_matter(size):
    points = normal(1, 3000, 2)
    weights = normal(1, 3000, 2, seed=1).square()
    plain = sse(points, weights, fit(points, 16, weights))
    scaled = sse(points, weights, fit(points, 16, weights * size))
    assert scaled == pytest.approx(plain, rel=5e-3)


def test_whole_weights_are_repetitions():
    generator = torch.Generator().manual_seed(0)
    points = normal(1, 12, 2)
    times = torch.randint(1, 4, (12,), generator=generator)
    weights = times.float().reshape(1, 12, 1).expand(-1, -1, 2)
    weighted = sse(points, weights, fit(points, 3, weights, options=MANY))
    repeated = points.repeat_interleave(times, dim=1)
    assert weighted == pytest.approx(sse(repeated, None, fit(repeated, 3, options=MANY)), rel=1e-9)


def test_elementwise_weights_beat_their_sum_on_the_elementwise_cost():
    points = normal(1, 5000, 2)
    weights = normal(1, 5000, 2, seed=1).abs() ** 6
    summed = weights.sum(dim=2, keepdim=True).expand(-1, -1, 2).contiguous()
    own = sse(points, weights, fit(points, 16, weights))
    assert own < 0.9 * sse(points, weights, fit(points, 16, summed))


@both_engines
@pytest.mark.parametrize("power", [-130, -60, 60, 120])
def test_the_unit_of_points_does_not_matter(engine, power):
    points = normal(1, 500, 2)
    if power == -130:  # denormal: round first, so that both problems are the same
        points = (points * 256).round() / 256
    plain = fit(points, 8, engine=engine)
    scaled = fit(points * 2.0**power, 8, engine=engine)
    assert torch.equal(plain.codes, scaled.codes)


@both_engines
def test_large_mean_and_far_outlier(engine):
    near = normal(1, 4000, 2) * 1e-3
    plain = sse(near.double(), None, fit(near.double(), 8, engine=engine))
    moved = near.double() + 1000
    assert sse(moved, None, fit(moved, 8, engine=engine)) == pytest.approx(plain, rel=5e-2)
    far = near.clone()
    far[0, 0] = 1e30
    codebook = fit(far, 9, engine=engine)
    rest = (far - codebook.decode())[0, 1:].double().square().sum()
    assert float(rest) <= float(plain[0]) * 1.05
    assert torch.equal(codebook.decode()[0, 0], far[0, 0])


@both_engines
def test_entries_are_ordered_and_of_the_promised_form(engine):
    points = normal(3, 1000, 2).half()
    codebook = fit(points, 16, engine=engine)
    assert codebook.lut.dtype is torch.float32
    assert codebook.codes.dtype is torch.uint8
    assert codebook.codes.shape == (3, 1000)
    for table in codebook.lut.tolist():
        assert table == sorted(table)
    assert fit(points.double(), 16, engine=engine).lut.dtype is torch.float64
    assert bool((fit(normal(1, 900, 1), 16).lut.diff(dim=1) > 0).all())


def test_more_entries_are_never_worse_and_256_are_the_most():
    points = normal(1, 4000, 2)
    costs = [sse(points, None, fit(points, k))[0] for k in (1, 2, 4, 8, 16, 64, 256)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == pytest.approx(float((points - points.mean(1)).double().square().sum()))


@pytest.mark.slow
def test_torch_and_compiled_engines_agree():
    points, weights = normal(2, 3000, 2), normal(2, 3000, 2, seed=1).square()
    options = KMeansVectorOptions(restarts=2, swaps=0)  # what is swapped may differ
    for w in (None, weights):
        ours = sse(points, w, fit(points, 8, w, options=options))
        other = sse(points, w, fit(points, 8, w, options=options, engine="torch"))
        assert other == pytest.approx(ours, rel=1e-6)


def test_what_cannot_be_clustered_is_refused():
    points = normal(1, 10, 2)
    with pytest.raises(ClusteringError, match=r"\[B, N, D\]"):
        fit(points[0], 4)
    with pytest.raises(ClusteringError, match="n_entries must be 1 to 256"):
        fit(points, 257)
    with pytest.raises(ClusteringError, match="importance of shape"):
        fit(points, 4, torch.ones(1, 10, 1))
    for bad in (-1.0, torch.inf, torch.nan):
        with pytest.raises(ClusteringError, match="finite and not negative"):
            fit(points, 4, torch.full_like(points, bad))
    with pytest.raises(ValueError, match="restarts"):
        KMeansVectorOptions(restarts=0)
    with pytest.raises(ValueError, match="extra"):
        KMeansVectorOptions(n_init=3)


@pytest.mark.cuda
def test_points_on_an_accelerator_stay_there():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    points = normal(2, 20000, 2)
    codebook = fit(points.cuda(), 16)
    assert codebook.lut.is_cuda
    assert codebook.codes.is_cuda
    plain = sse(points, None, fit(points, 16))
    moved = type(codebook)(codebook.lut.cpu(), codebook.codes.cpu())
    assert sse(points, None, moved) == pytest.approx(plain, rel=2e-2)
