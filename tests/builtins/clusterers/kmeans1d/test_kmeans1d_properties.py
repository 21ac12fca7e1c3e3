"""What must hold for the scalar k-means whatever the data."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from palette_core.builtins.clusterers.kmeans1d import torch_engine as scalar_torch
from palette_core.builtins.clusterers.kmeans1d.clusterer import KMeans1d
from palette_core.builtins.clusterers.kmeans1d.options import KMeans1dOptions
from palette_core.errors import ClusteringError
from palette_core.plugins import ClusterProblem

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def fit(points, k, importance=None, resolution=4):
    importance = None if importance is None else importance[..., None]
    problem = ClusterProblem(points[..., None], k, importance, resolution=resolution)
    return KMeans1d(KMeans1dOptions()).fit(problem)


def normal(shape, dtype=torch.float32, seed=0, scale=0.02):
    points = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    return points.to(dtype)


def same(a, b):
    return torch.equal(a.lut, b.lut) and torch.equal(a.codes, b.codes)


def sse(codebook, points):
    return float((codebook.decode().squeeze(-1).double() - points.double()).square().sum())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [300, 40_000])
def test_powers_of_two_scale_the_lut_and_keep_the_codes(dtype, count):
    points = normal((1, count), dtype)
    plain, scaled = fit(points, 16, resolution=None), fit(points * 8, 16, resolution=None)
    assert torch.equal(plain.codes, scaled.codes)
    assert torch.equal(plain.lut * 8, scaled.lut)


def test_shifting_the_data_shifts_the_lut():
    points = torch.randint(-(2**12), 2**12, (1, 40_000)).float() / 2**10
    plain, moved = fit(points, 16, resolution=None), fit(points + 64, 16, resolution=None)
    assert torch.equal(plain.codes, moved.codes)
    assert torch.allclose(plain.lut + 64, moved.lut, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [300, 40_000])
def test_order_does_not_matter(dtype, count):
    points = normal((1, count), dtype)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    plain, mixed = fit(points, 16, resolution=None), fit(points[:, order], 16, resolution=None)
    assert torch.equal(plain.codes[:, order], mixed.codes)
    assert torch.allclose(plain.lut, mixed.lut, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [300, 40_000])
@pytest.mark.parametrize("amount", [0.0, 1.0])
def test_even_importance_is_none(dtype, count, amount):
    points = normal((2, count), dtype)
    assert same(fit(points, 16), fit(points, 16, torch.full((2, count), amount)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_integer_weights_are_repetitions(dtype):
    points = normal((1, 40_000), dtype)
    times = torch.randint(0, 4, (1, 40_000), generator=torch.Generator().manual_seed(1))
    weighted = fit(points, 16, times.float(), resolution=None)
    repeated = fit(points[0].repeat_interleave(times[0])[None], 16, resolution=None)
    assert torch.allclose(weighted.lut, repeated.lut, rtol=1e-6, atol=0)


def test_points_without_weight_do_not_pull_but_are_assigned():
    points = torch.tensor([[0.0, 1.0, 100.0, 0.1, 0.9]])
    found = fit(points, 2, torch.tensor([[1.0, 1.0, 0.0, 1.0, 1.0]]))
    assert found.lut[0, :, 0].tolist() == pytest.approx([0.05, 0.95])
    assert found.codes[0].tolist() == [0, 1, 1, 0, 1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [300, 40_000])
@pytest.mark.parametrize("resolution", [4, None])
def test_blocks_do_not_see_each_other(dtype, count, resolution):
    points = normal((5, count), dtype)
    importance = normal((5, count), seed=1).abs()
    importance[2] = 0.0
    together = fit(points, 16, importance, resolution)
    for b in range(5):
        alone = fit(points[b : b + 1], 16, importance[b : b + 1], resolution)
        assert torch.equal(together.lut[b], alone.lut[0])
        assert torch.equal(together.codes[b], alone.codes[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 50_000), (1, 2_300_000)])
def test_threads_do_not_change_a_bit(dtype, shape):
    points, before = normal(shape, dtype), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(fit(points, 16))
    finally:
        torch.set_num_threads(before)
    assert same(*results)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("resolution", [1, 4, None])
def test_more_entries_are_never_worse(dtype, resolution):
    points = normal((1, 40_000), dtype)
    costs = [sse(fit(points, 2**bits, resolution=resolution), points) for bits in range(1, 9)]
    assert all(b <= a for a, b in itertools.pairwise(costs))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(DTYPES),
    st.sampled_from([1, 2, 100, 9000]),
    st.sampled_from([2, 8, 100, 256]),
    st.integers(0, 1000),
)
def test_every_entry_is_used_or_spare(dtype, count, k, seed):
    points = normal((1, count), dtype, seed)
    found = fit(points, k)
    lut, used = found.lut[0, :, 0], found.codes[0].unique().long()
    assert torch.equal(used, torch.arange(used.numel()))
    assert bool((lut[used].diff() > 0).all())
    assert bool((lut[used[-1] :] == lut[-1]).all())
    assert used.numel() == min(k, points.unique().numel())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("resolution", [4, None])
def test_torch_form_agrees(dtype, weighted, resolution):
    points = normal((2, 150_000), dtype)
    points[0, 7] = 3.0
    importance = normal(points.shape, seed=1).abs() if weighted else None
    for k in (16, 256):
        host = fit(points, k, importance, resolution)
        lut, codes = scalar_torch.fit_torch(points, importance, k, resolution)
        assert torch.allclose(lut, host.lut.squeeze(-1), rtol=3e-7, atol=0)
        assert (codes != host.codes).float().mean() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_torch_form_takes_blocks_together(dtype, weighted, monkeypatch):
    """Blocks of many kinds, in groups and pieces that cut them anyhow, as if each were alone."""
    points = normal((7, 20_000), dtype)
    points[1] *= 50.0
    points[2, 3] = 1e3
    points[3] = 0.25  # has no spread: it is sorted, not binned
    points[4] = (points[4] * 4).round()
    importance = None
    if weighted:
        importance = normal(points.shape, seed=1).abs()
        importance[5] = 0.0
    alone = [
        scalar_torch.fit_torch(
            points[b : b + 1], None if importance is None else importance[b : b + 1], 16, 4
        )
        for b in range(7)
    ]
    monkeypatch.setattr(scalar_torch, "_TABLES", 3)
    for chunk in (1 << 22, 45_000, 7_001):
        monkeypatch.setattr(scalar_torch, "_CHUNK", chunk)
        lut, codes = scalar_torch.fit_torch(points, importance, 16, 4)
        for b, (its_lut, its_codes) in enumerate(alone):
            assert torch.allclose(lut[b], its_lut[0], rtol=3e-7, atol=0)
            assert (codes[b] != its_codes[0]).float().mean() <= 1e-4
        host = fit(points, 16, importance, 4)
        assert torch.allclose(lut, host.lut.squeeze(-1), rtol=3e-7, atol=0)
        assert (codes != host.codes).float().mean() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_device_is_asked_as_often_for_many_blocks(dtype, monkeypatch):
    """No operation per block: as many for 32 blocks as for 2."""

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    calls = []
    with ThreadPoolExecutor(1) as pool:
        # what the host does for each block is done on another thread, where nothing is counted
        monkeypatch.setattr(scalar_torch, "map_threads", lambda f, items: list(pool.map(f, items)))
        for blocks in (2, 32):
            points = normal((1, 5000), dtype).expand(blocks, -1).contiguous()
            with Count() as count:
                scalar_torch.fit_torch(points, None, 4, 4)
            calls.append(count.calls)
    assert calls[1] == calls[0] > 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_agrees(dtype):
    points = normal((2, 150_000), dtype)
    host, device = fit(points, 16), fit(points.cuda(), 16)
    assert device.lut.is_cuda
    assert device.codes.is_cuda
    assert torch.allclose(device.lut.cpu(), host.lut, rtol=3e-7, atol=0)


def test_views_are_taken_as_they_are():
    points = normal((64, 48))
    turned = fit(points.t(), 4)
    assert same(turned, fit(points.t().contiguous(), 4))
    wide = points.reshape(1, -1).expand(3, -1)
    assert same(fit(wide, 4), fit(wide.contiguous(), 4))


@pytest.mark.parametrize(
    ("points", "k", "importance", "message"),
    [
        (torch.zeros(1, 4, 2), 4, None, "kmeans_vector"),
        (torch.zeros(1, 4, 1, dtype=torch.int32), 4, None, "int32, expected one of float16"),
        (torch.zeros(1, 0, 1), 4, None, "nothing to cluster"),
        (torch.zeros(1, 4, 1), 257, None, "n_entries=257, expected 1 to 256"),
        (torch.zeros(1, 4, 1), 4, torch.ones(1, 5, 1), r"\(1, 5, 1\)"),
        (torch.zeros(1, 4, 1), 4, -torch.ones(1, 4, 1), "from -1.0 to -1.0"),
        (torch.zeros(1, 4, 1), 4, torch.full((1, 4, 1), float("nan")), "nan"),
    ],
)
def test_what_cannot_be_clustered_is_refused(points, k, importance, message):
    with pytest.raises(ClusteringError, match=message):
        KMeans1d().fit(ClusterProblem(points, k, importance))


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="exakt"):
        KMeans1dOptions.model_validate({"exakt": True})


@pytest.mark.slow
def test_compiled_kernels_outlive_the_process(tmp_path):
    """A second process finds the kernels that the first one compiled into numba's folder."""
    code = (
        "from palette_core.builtins.clusterers.kmeans1d.warm import kernels_are_cached, warm_up\n"
        "print(kernels_are_cached()); warm_up(); print(kernels_are_cached())"
    )
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    seen = [
        subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert seen == [["False", "True"], ["True", "True"]]


@pytest.mark.slow
def test_peak_memory_stays_below_three_copies():
    resource = pytest.importorskip("resource")
    code = (
        "import resource, torch\n"
        "from palette_core.builtins.clusterers.kmeans1d.clusterer import KMeans1d\n"
        "from palette_core.builtins.clusterers.kmeans1d.warm import warm_up\n"
        "from palette_core.plugins import ClusterProblem\n"
        "points = torch.randn(1, 1 << 24, 1)\n"
        "warm_up()\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "for resolution in (4, None):\n"
        "    KMeans1d().fit(ClusterProblem(points, 16, resolution=resolution))\n"
        "print(peak() - before)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert resource is not None
    assert int(out.stdout) * unit <= 3 * 4 * 2**24


def test_exact_tables_of_256_ask_for_less_than_eight_times_their_weight():
    """Also where a third of all points become atoms of the last search."""
    points = torch.randn(1, 1 << 20, 1, generator=torch.Generator().manual_seed(0))
    KMeans1d().fit(ClusterProblem(points[:, : 1 << 14], 256))
    tracemalloc.start()
    KMeans1d().fit(ClusterProblem(points, 256))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 8 * 4 * 2**20


def test_numpy_random_state_is_left_alone():
    np.random.seed(3)
    torch.manual_seed(3)
    expected = np.random.get_state()[1].copy(), torch.get_rng_state()
    fit(normal((1, 9000), seed=5), 16)
    assert np.array_equal(np.random.get_state()[1], expected[0])
    assert torch.equal(torch.get_rng_state(), expected[1])
