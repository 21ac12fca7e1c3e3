"""``gptq`` and ``lnq`` against exhaustive search, weighted k-means, and their own promises."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layerwise_cases import ALGORITHMS, DAMPING, LAYOUTS, moments_for, objective, solve

from palette_core.builtins.clusterers.kmeans1d.clusterer import KMeans1d
from palette_core.builtins.clusterers.layerwise import problem as problem_form
from palette_core.builtins.clusterers.layerwise.clusterer import Gptq, Lnq
from palette_core.builtins.clusterers.layerwise.options import GptqOptions, LnqOptions
from palette_core.builtins.lut_quantizers.float8 import Float8LutQuantizer
from palette_core.builtins.lut_quantizers.integer import IntegerLutQuantizer
from palette_core.errors import ClusteringError
from palette_core.plugins import ClusterProblem, InputMoments
from palette_core.spec import QuantizationSpec
from palette_core.tensors.layout import BlockLayout


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=["gptq", "lnq"])
@pytest.mark.parametrize("case", LAYOUTS)
def test_every_layout_gets_lower_and_says_what_it_is(algorithm, case):
    layout, groups, rows = LAYOUTS[case]
    weight = torch.randn(layout.shape, generator=torch.Generator().manual_seed(1))
    moments = moments_for(layout, groups, rows)
    book, after = solve(algorithm, weight, layout, moments, 4)
    assert book.objective_after == pytest.approx(after, rel=1e-3, abs=1e-6)
    assert book.objective_after <= book.objective_before
    if case not in ("one column",):
        assert book.objective_after < 0.97 * book.objective_before


@pytest.mark.parametrize("share", [None, torch.tensor([1.0, 0.1, 0.0, 2.0, 1.0, 1.0, 3.0, 0.5])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_shares_and_dtypes(share, dtype):
    layout = LAYOUTS["rows"][0]
    weight = torch.randn(layout.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    moments = moments_for(layout, share=share)
    book, after = solve(Lnq(LnqOptions(damping=DAMPING)), weight, layout, moments, 4)
    assert book.objective_after == pytest.approx(after, rel=1e-3)
    assert book.objective_after < book.objective_before


@pytest.mark.parametrize("seed", range(6))
def test_lnq_comes_near_the_best_of_all_assignments(seed):
    """One row of five weights, two entries: all 2⁵ assignments, each with its best entries."""
    layout = BlockLayout((1, 5), (1, 5))
    weight = torch.randn(1, 5, generator=torch.Generator().manual_seed(seed))
    moments = moments_for(layout, seed=seed)
    h = moments.hessian[0].double() + DAMPING * moments.diagonal().double().mean() * torch.eye(5)
    best = np.inf
    for codes in itertools.product(range(2), repeat=5):
        p = torch.nn.functional.one_hot(torch.tensor(codes), 2).double()
        entries = torch.linalg.pinv(p.T @ h @ p) @ p.T @ h @ weight[0].double()
        gap = weight[0].double() - p @ entries
        best = min(best, float(gap @ h @ gap))
    _, after = solve(Lnq(LnqOptions(damping=DAMPING)), weight, layout, moments, 2)
    assert after >= best * (1 - 1e-4)
    assert after <= best * 1.6  # descent may end in a local optimum
    if seed == 0:
        assert after <= best * 1.001


def test_no_single_change_of_a_code_helps_lnq():
    layout = LAYOUTS["rows"][0]
    weight = torch.randn(layout.shape, generator=torch.Generator().manual_seed(3))
    moments = moments_for(layout)
    lnq = Lnq(LnqOptions(damping=DAMPING, rounds=200, tolerance=0.0, sweeps=100))
    book, after = solve(lnq, weight, layout, moments, 4)
    for block, at, code in itertools.product(range(2), range(0, 48, 5), range(4)):
        codes = book.codes.clone()
        codes[block, at] = code
        points = torch.stack([book.lut[b][codes[b].long()] for b in range(2)])
        assert objective(weight, layout.merge(points), moments) >= after * (1 - 1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=["gptq", "lnq"])
def test_a_diagonal_hessian_is_weighted_kmeans(algorithm):
    layout = LAYOUTS["rows"][0]
    weight = torch.randn(layout.shape, generator=torch.Generator().manual_seed(2))
    diagonal = torch.rand(1, 12, generator=torch.Generator().manual_seed(2)) + 0.1
    importance = layout.split(diagonal.expand(8, 12)).contiguous()
    best = KMeans1d().fit(ClusterProblem(layout.split(weight), 4, importance))
    short = InputMoments(diagonal, layout, 1)
    whole = InputMoments(torch.diag_embed(diagonal), layout, 1)
    found = algorithm.fit(ClusterProblem(layout.split(weight), 4, None, short))
    assert torch.equal(found.codes, best.codes)
    assert torch.equal(found.lut, best.lut)
    # The same as a full matrix: k-means is exact, so nothing is left to gain.
    exact = type(algorithm)(type(algorithm.options)(damping=0.0))
    found = exact.fit(ClusterProblem(layout.split(weight), 4, None, whole))
    points = torch.stack([found.lut[b][found.codes[b].long()] for b in range(2)])
    wanted = torch.stack([best.lut[b][best.codes[b].long()] for b in range(2)])
    gaps = [
        float((importance * (layout.split(weight) - p).square()).sum()) for p in (points, wanted)
    ]
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-4)


QUANTIZERS = [
    IntegerLutQuantizer(QuantizationSpec(dtype=torch.int8)),
    IntegerLutQuantizer(QuantizationSpec(dtype=torch.uint8, qscheme="asymmetric")),
    IntegerLutQuantizer(QuantizationSpec(dtype=torch.int8, qscheme="symmetric_with_clipping")),
    Float8LutQuantizer(QuantizationSpec(dtype=torch.float8_e4m3fn)),
]


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: f"{q.dtype}"[6:])
@pytest.mark.parametrize("case", ["rows", "columns", "vectors"])
def test_quantized_tables_are_what_the_quantizer_stores(quantizer, case):
    layout, groups, rows = LAYOUTS[case]
    weight = torch.randn(layout.shape, generator=torch.Generator().manual_seed(4))
    moments = moments_for(layout, groups, rows)
    book, after = solve(Lnq(LnqOptions(damping=DAMPING)), weight, layout, moments, 4, quantizer)
    _, dense = solve(Lnq(LnqOptions(damping=DAMPING)), weight, layout, moments, 4)
    assert book.quantized is not None
    assert torch.equal(book.quantized.dequantize(), book.lut)
    assert book.objective_after == pytest.approx(after, rel=1e-3)
    assert book.objective_after <= book.objective_before
    assert after <= dense * 1.3
    if quantizer.dtype is torch.int8 and "CLIPPING" in str(getattr(quantizer, "scheme", "")):
        assert int(book.quantized.values.min()) > -128


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_nothing(threads):
    layout = BlockLayout((96, 40), (16, 40))
    weight = torch.randn(layout.shape, generator=torch.Generator().manual_seed(5))
    moments = moments_for(layout)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        book, _ = solve(Lnq(LnqOptions(damping=DAMPING)), weight, layout, moments, 8)
    finally:
        torch.set_num_threads(before)
    torch.set_num_threads(1)
    try:
        again, _ = solve(Lnq(LnqOptions(damping=DAMPING)), weight, layout, moments, 8)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(book.lut, again.lut)
    assert torch.equal(book.codes, again.codes)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=["gptq", "lnq"])
def test_matrices_of_low_rank_and_extreme_size(algorithm):
    layout = LAYOUTS["rows"][0]
    weight = torch.randn(layout.shape, generator=torch.Generator().manual_seed(6))
    for moments in (
        moments_for(layout, rank=1),
        InputMoments(moments_for(layout).hessian * 1e30, layout, 1),
        InputMoments(moments_for(layout).hessian * 1e-30, layout, 1),
    ):
        book = algorithm.fit(ClusterProblem(layout.split(weight), 4, None, moments))
        assert book.objective_after <= book.objective_before
        assert bool(torch.isfinite(book.lut).all())
    grouped, groups, _ = LAYOUTS["depthwise"]
    some = moments_for(grouped, groups).hessian.clone()
    some[2] = 0.0  # one channel is never on
    book = algorithm.fit(
        ClusterProblem(
            grouped.split(weight[:8, :9].reshape(8, 1, 3, 3)),
            4,
            None,
            InputMoments(some, grouped, 1),
        )
    )
    assert book.objective_after <= book.objective_before
    dead = moments_for(layout).hessian.clone()
    dead[:, 3], dead[:, :, 3] = 0.0, 0.0
    book = algorithm.fit(
        ClusterProblem(layout.split(weight), 4, None, InputMoments(dead, layout, 1))
    )
    assert book.objective_after <= book.objective_before


def test_moments_that_cannot_be_used_are_refused():
    layout = LAYOUTS["rows"][0]
    points = layout.split(torch.randn(8, 12))
    with pytest.raises(ClusteringError, match="needs second moments"):
        Lnq(LnqOptions(damping=DAMPING)).fit(ClusterProblem(points, 4))
    for hessian, says in (
        (torch.zeros(1, 12, 12), "all its inputs were zero"),
        (torch.full((1, 12, 12), torch.nan), "NaN"),
        (torch.eye(7)[None], "7 coordinates"),
    ):
        with pytest.raises(ClusteringError, match=says):
            Gptq(GptqOptions(damping=DAMPING)).fit(
                ClusterProblem(points, 4, None, InputMoments(hessian, layout, 1))
            )


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 9),
    k=st.sampled_from([2, 4, 16]),
    seed=st.integers(0, 1000),
    act_order=st.booleans(),
)
def test_the_objective_never_rises(rows, columns, k, seed, act_order):
    layout = BlockLayout((rows, columns), (rows, columns))
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).round(
        decimals=1
    )
    moments = moments_for(layout, seed=seed)
    gptq, _ = solve(
        Gptq(GptqOptions(damping=DAMPING, act_order=act_order, refits=1)),
        weight,
        layout,
        moments,
        k,
    )
    lnq, after = solve(
        Lnq(LnqOptions(damping=DAMPING, act_order=act_order)), weight, layout, moments, k
    )
    assert gptq.objective_after <= gptq.objective_before
    assert lnq.objective_after <= gptq.objective_after * (1 + 1e-6)
    if weight.unique().numel() <= k:
        assert after == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("count", "expected"), [(16 * 10, 0.3), (16 * 40, 0.1), (16 * 4000, 0.01), (0, 0.3)]
)
def test_damping_grows_as_inputs_get_few(count, expected):
    assert InputMoments(torch.eye(16)[None], LAYOUTS["rows"][0], count).damping() == pytest.approx(
        expected
    )


@pytest.mark.parametrize("algorithm", [Gptq, Lnq])
def test_damping_is_chosen_where_nobody_says(algorithm):
    options = type(algorithm().options)
    weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(3))
    layout = BlockLayout((8, 6), (8, 6))
    moments = replace(moments_for(layout), count=6 * 4 * 20)
    chosen = algorithm().fit(ClusterProblem(layout.split(weight), 4, None, moments))
    same = algorithm(options(damping=0.05)).fit(
        ClusterProblem(layout.split(weight), 4, None, moments)
    )
    assert chosen.objective_after == same.objective_after
    assert torch.equal(chosen.decode(), same.decode())


def test_other_threads_make_room_where_a_weight_is_large(monkeypatch):
    made_room = []
    monkeypatch.setattr(problem_form, "take_the_cores", lambda: made_room.append(True))
    layout = BlockLayout((8, 12), (4, 12))
    weight, moments = torch.randn(8, 12), moments_for(layout)
    solve(ALGORITHMS[0], weight, layout, moments, 4)
    assert not made_room
    monkeypatch.setattr(problem_form, "_LONG", 8 * 12 * 12)
    solve(ALGORITHMS[0], weight, layout, moments, 4)
    assert made_room == [True]
