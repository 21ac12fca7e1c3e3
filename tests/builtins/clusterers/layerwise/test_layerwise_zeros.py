"""Pruned weights under ``gptq`` and ``lnq``: fixed at zero, and reckoned with."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from layerwise_cases import ALGORITHMS, DAMPING, LAYOUTS, decode, moments_for, objective

from palette_core.builtins.clusterers.layerwise import factors as factors_of
from palette_core.builtins.clusterers.layerwise import steps
from palette_core.builtins.clusterers.layerwise.clusterer import Gptq, Lnq
from palette_core.builtins.clusterers.layerwise.options import GptqOptions, LnqOptions
from palette_core.builtins.clusterers.layerwise.problem import pose, weighted_kmeans
from palette_core.builtins.lut_quantizers.float8 import Float8LutQuantizer
from palette_core.builtins.lut_quantizers.integer import IntegerLutQuantizer
from palette_core.plugins import ClusterProblem, InputMoments
from palette_core.spec import QuantizationSpec
from palette_core.tensors.layout import BlockLayout
from palette_core.tensors.zeros import fill_points, keep_zeros

QUANTIZERS = {
    "float entries": None,
    "int8": IntegerLutQuantizer(QuantizationSpec(dtype=torch.int8)),
    "uint8": IntegerLutQuantizer(QuantizationSpec(dtype=torch.uint8, qscheme="asymmetric")),
    "fp8": Float8LutQuantizer(QuantizationSpec(dtype=torch.float8_e4m3fn)),
}


def pruned(layout, share=0.5, seed=0, dtype=torch.float32):
    """A weight, and the points of it that are zero."""
    g = torch.Generator().manual_seed(seed)
    points = layout.split(torch.randn(layout.shape, generator=g))
    zeros = torch.rand(points.shape[:2], generator=g) < share
    points = fill_points(points, zeros)
    return layout.merge(points).to(dtype), zeros


def problem_of(weight, zeros, layout, moments, k=4, quantizer=None):
    return ClusterProblem(layout.split(weight), k, None, moments, quantizer, zeros=zeros)


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=["gptq", "lnq"])
@pytest.mark.parametrize("case", LAYOUTS)
def test_zeros_are_exact_in_every_layout(case, algorithm, quantizer):
    layout, groups, rows = LAYOUTS[case]
    weight, zeros = pruned(layout)
    moments = moments_for(layout, groups, rows)
    book = algorithm.fit(problem_of(weight, zeros, layout, moments, quantizer=quantizer))
    made = decode(book, layout)
    assert bool((made[weight == 0] == 0).all())
    assert bool((book.lut == 0).all(-1).any(1).all())
    assert (book.quantized is None) == (quantizer is None)
    if quantizer is not None:
        assert torch.equal(book.quantized.dequantize(), book.lut)
    if layout.cluster_dim == 1:
        assert bool((book.lut.diff(dim=1) >= 0).all())
    after = objective(weight, made, moments)
    assert book.objective_after == pytest.approx(after, rel=1e-3, abs=1e-6)
    assert book.objective_after <= book.objective_before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_shares(dtype):
    layout = LAYOUTS["rows"][0]
    weight, zeros = pruned(layout, dtype=dtype)
    share = torch.tensor([1.0, 0.1, 0.0, 2.0, 1.0, 1.0, 3.0, 0.5])
    moments = moments_for(layout, share=share)
    book = Lnq(LnqOptions(damping=DAMPING)).fit(problem_of(weight, zeros, layout, moments))
    made = decode(book, layout, dtype)
    assert bool((made[weight == 0] == 0).all())
    assert book.objective_after == pytest.approx(objective(weight, made, moments), rel=1e-3)
    assert book.objective_after < book.objective_before


def damped(moments):
    h = moments.hessian[0].double()
    return h + DAMPING * h.diagonal().mean() * torch.eye(len(h)).double()


def best_of_all(target, zeros, h, k):
    """The least objective over all assignments of one row to K − 1 entries and zero."""
    free = [i for i, zero in enumerate(zeros) if not zero]
    best = np.inf
    for codes in itertools.product(range(k), repeat=len(free)):
        p = torch.zeros(len(zeros), k - 1).double()
        for i, code in zip(free, codes, strict=True):
            if code:
                p[i, code - 1] = 1.0
        entries = torch.linalg.pinv(p.T @ h @ p) @ p.T @ h @ target
        gap = target - p @ entries
        best = min(best, float(gap @ h @ gap))
    return best


@pytest.mark.parametrize("aimed", [False, True], ids=["weight", "other target"])
@pytest.mark.parametrize("k", [2, 3])
def test_lnq_comes_near_the_best_of_all_that_keep_zeros(k, aimed):
    """Rows of seven, three of them pinned; also where their target is not zero."""
    layout = BlockLayout((1, 7), (1, 7))
    ratios = []
    for seed in range(12):
        g = torch.Generator().manual_seed(seed)
        target = torch.randn(1, 7, generator=g)
        zeros = torch.zeros(1, 7, dtype=torch.bool)
        zeros[0, torch.randperm(7, generator=g)[:3]] = True
        if not aimed:
            target = target.masked_fill(zeros, 0.0)
        moments = moments_for(layout, seed=seed)
        book = Lnq(LnqOptions(damping=DAMPING)).fit(
            ClusterProblem(layout.split(target), k, None, moments, zeros=zeros)
        )
        made = decode(book, layout)
        assert bool((made[zeros] == 0).all())
        after = objective(target, made, moments)
        best = best_of_all(target[0].double(), zeros[0].tolist(), damped(moments), k)
        assert after >= best * (1 - 1e-4)
        ratios.append(after / best)
    assert np.mean(ratios) < 1.25  # descent may end in a local optimum
    assert min(ratios) < 1.0001


def afterwards(algorithm, weight, layout, moments, k, quantizer=None):
    """What pinning zeros when all is done makes of a codebook that knows nothing of them."""
    points = layout.split(weight)
    book = algorithm.fit(ClusterProblem(points, k, None, moments, quantizer))
    return keep_zeros(points, None, book, torch.float32, reassign=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dim", "share", "kind"),
    [
        (1, 0.05, "float entries"),
        (1, 0.3, "float entries"),
        (1, 0.7, "float entries"),
        (2, 0.3, "float entries"),
        (1, 0.3, "int8"),
    ],
)
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=["gptq", "lnq"])
def test_it_beats_pinning_afterwards(algorithm, dim, share, kind):
    quantizer = QUANTIZERS[kind]
    layout = BlockLayout((16, 24), (8, 24), dim)
    inside, outside = [], []
    for seed in range(6):
        weight, zeros = pruned(layout, share, seed)
        moments = moments_for(layout, seed=seed)
        book = algorithm.fit(problem_of(weight, zeros, layout, moments, 8, quantizer))
        late = afterwards(algorithm, weight, layout, moments, 8, quantizer)
        inside.append(objective(weight, decode(book, layout), moments))
        outside.append(objective(weight, decode(late, layout), moments))
    assert np.mean(inside) <= np.mean(outside)
    assert np.mean(np.log(inside)) <= np.mean(np.log(outside))


def frantar(target, h, entries, zeros, order):
    """GPTQ as in its paper: each column's error, over the pivot, goes into those that are left."""
    w, size = target.double().clone(), len(h)
    inverse = torch.linalg.inv(h[order][:, order])
    upper = torch.linalg.cholesky(inverse, upper=True)
    made = torch.zeros_like(w)
    for at, column in enumerate(order):
        near = (w[:, column, None] - entries[None]).abs().argmin(1)
        made[:, column] = torch.where(zeros[:, column], 0.0, entries[near])
        fed = (w[:, column] - made[:, column]) / upper[at, at]
        for later in range(at + 1, size):
            w[:, order[later]] -= fed * upper[at, later]
    return made


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("aimed", [False, True], ids=["weight", "other target"])
def test_feedback_of_pinned_elements_is_that_of_the_paper(aimed, act_order):
    layout = BlockLayout((6, 20), (6, 20))
    weight, zeros = pruned(layout)
    target = weight + (0.2 * torch.randn(6, 20, generator=torch.Generator().manual_seed(9)) * aimed)
    moments = moments_for(layout)
    problem = problem_of(target, zeros, layout, moments, 6)
    posed = pose(problem, moments, DAMPING, weighted_kmeans(problem, moments))
    tables = posed.start.tables
    factors = factors_of.factorize(posed.matrix.h, act_order=act_order)
    state = steps.feed_back(posed.matrix, factors, tables)
    made = torch.from_numpy(tables.lut[0, :, 0][state.codes])
    order = damped(moments).diagonal().argsort(descending=True) if act_order else range(20)
    entries = torch.from_numpy(tables.lut[0, :, 0]).double()
    order = [int(i) for i in order]
    truth = frantar(target, damped(moments), entries, zeros.reshape(6, 20), order)
    assert torch.equal(made.double(), truth)
    assert bool((made[zeros.reshape(6, 20)] == 0).all())


@pytest.mark.parametrize("case", ["rows", "columns", "grid", "vectors", "depthwise", "transposed"])
def test_the_objective_never_rises_along_lnq(case):
    layout, groups, rows = LAYOUTS[case]
    weight, zeros = pruned(layout, 0.4)
    moments = moments_for(layout, groups, rows)
    problem = problem_of(weight, zeros, layout, moments)
    last = Gptq(GptqOptions(damping=DAMPING)).fit(problem).objective_after * (1 + 1e-6)
    for rounds in range(5):
        options = LnqOptions(damping=DAMPING, rounds=rounds, refits=2, sweeps=1, tolerance=0)
        book = Lnq(options).fit(problem)
        assert book.objective_after <= last
        last = book.objective_after * (1 + 1e-6)


def test_no_single_change_of_a_free_code_and_no_other_entry_helps_lnq():
    layout = LAYOUTS["rows"][0]
    weight, zeros = pruned(layout, 0.3)
    moments = moments_for(layout)
    options = LnqOptions(damping=DAMPING, rounds=50, sweeps=50, tolerance=0)
    book = Lnq(options).fit(problem_of(weight, zeros, layout, moments))
    least = objective(weight, decode(book, layout), moments)
    for block, point in itertools.product(*map(range, book.codes.shape)):
        if zeros[block, point]:
            continue
        for code in range(4):
            codes = book.codes.clone()
            codes[block, point] = code
            assert objective(weight, decode(replace(book, codes=codes), layout), moments) >= (
                least * (1 - 1e-5)
            )
    for block, entry in itertools.product(range(2), range(4)):
        if float(book.lut[block, entry, 0]) == 0:
            continue
        for step in (-1e-2, 1e-2):
            lut = book.lut.clone()
            lut[block, entry, 0] += step
            assert objective(weight, decode(replace(book, lut=lut), layout), moments) > least


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=["gptq", "lnq"])
def test_extremes(algorithm):
    """All zero, none zero, moments of extreme size, and more entries than values."""
    layout = LAYOUTS["rows"][0]
    nothing = torch.zeros(layout.shape)
    dense, none = pruned(layout, 0.0)
    half, some = pruned(layout)
    few = half.sign()
    for weight, zeros, size in (
        (nothing, torch.ones_like(none), 1.0),
        (dense, none, 1.0),
        (half, some, 1e30),
        (half, some, 1e-30),
        (few, some, 1.0),
    ):
        moments = InputMoments(moments_for(layout).hessian * size, layout, 1)
        book = algorithm.fit(problem_of(weight, zeros, layout, moments))
        made = decode(book, layout)
        assert bool((made[weight == 0] == 0).all())
        assert bool((book.lut == 0).any(1).all())
        assert book.objective_after <= book.objective_before
        if weight is not dense and weight is not half:
            assert torch.equal(made, weight)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=["gptq", "lnq"])
def test_diagonal_moments(algorithm):
    layout = BlockLayout((12, 8), (12, 8), 1, 1)
    weight, zeros = pruned(layout)
    counts = torch.arange(12.0)[None]
    moments = InputMoments(counts, layout, 66, rows=(1,))
    book = algorithm.fit(problem_of(weight, zeros, layout, moments))
    made = decode(book, layout)
    assert bool((made[weight == 0] == 0).all())
    plain = afterwards(algorithm, weight, layout, moments, 4)
    error = [
        float((counts[0, :, None] * (weight - w).square()).sum())
        for w in (made, decode(plain, layout))
    ]
    assert error[0] <= error[1] * (1 + 1e-6)
