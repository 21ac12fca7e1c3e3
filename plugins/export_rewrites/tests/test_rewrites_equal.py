"""Each rewrite computes what its operation computes: both run in torch, on the same arguments."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from export_rewrites import REWRITES, known_rewrites
from export_rewrites._registry import rewrites_of
from export_rewrites.programs import FAMILIES, Program

aten = torch.ops.aten
Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


X, Y, ROWS = normal(3, 4), normal(3, 4).flip(0), torch.tensor([2, 0, 0])
ODD = torch.tensor([1.0, float("nan"), -0.0, 0.0])
WHOLE = torch.tensor([-7, -1, 0, 5])
VOLUME = normal(1, 4, 5, 6, 4)
MANY = normal(2, 1, 3, 2, 2, 2)
# Operations that models reach only through others, and arguments that no program has.
CALLS: list[Call] = [
    (aten.index_select.default, (X > 0, 0, torch.tensor([1, 0, 1])), {}),
    (aten.reciprocal.default, (torch.tensor([1, -2, 0, 7]),), {}),
    (aten.fmin.default, (ODD, ODD.flip(0)), {}),
    (aten.fmax.default, (ODD, ODD.flip(0)), {}),
    (aten.copysign.Scalar, (X, -1.0), {}),
    (aten.copysign.Tensor, (torch.ones(4), ODD.nan_to_num()), {}),
    (aten.add.Scalar, (X, 2, 3), {}),
    (aten.sub.Scalar, (X, 2, 3), {}),
    (aten.rsub.Scalar, (WHOLE, 2, 3), {}),
    (aten.bitwise_and.Scalar, (WHOLE, 3), {}),
    (aten.bitwise_or.Scalar, (WHOLE, 3), {}),
    (aten.bitwise_xor.Scalar, (WHOLE, 3), {}),
    (aten.__and__.Scalar, (WHOLE, 3), {}),
    (aten.__or__.Scalar, (WHOLE, 3), {}),
    (aten.__xor__.Scalar, (WHOLE, 3), {}),
    (aten.bitwise_or.Tensor, (X > 0, Y > 0), {}),
    (aten.bitwise_xor.Tensor, (X > 0, Y > 0), {}),
    (aten.bitwise_left_shift.Tensor_Scalar, (WHOLE, 2), {}),
    (aten.bitwise_right_shift.Tensor_Scalar, (WHOLE, 1), {}),
    (aten.clamp_max.default, (X, 0), {}),
    (aten.mv.default, (X, Y[0]), {}),
    (aten.rrelu_with_noise_functional.default, (X, torch.zeros_like(X), 0.1, 0.3, False), {}),
    (aten.zeros.default, ([2, 3],), {"dtype": torch.int32}),
    (aten.ones.default, ([2, 3],), {}),
    (aten.new_full.default, (X, [2, 3], 2), {"dtype": torch.int64}),
    (aten.new_zeros.default, (X, [2, 3]), {}),
    (aten.index_fill.int_Scalar, (X, 0, ROWS, 7), {}),
    (aten.index_put.default, (X, [ROWS, None], torch.tensor(3.0)), {}),
    (aten.constant_pad_nd.default, (X, [-1, 2, 1, -1], 3.0), {}),
    (aten.constant_pad_nd.default, (X > 0, [-1, 2, 1, -1], 3.0), {}),
    (aten.constant_pad_nd.default, (X > 0, [1, 2]), {}),
    (aten.clamp.Tensor, (X, None, Y), {}),
    (aten.log_sigmoid_forward.default, (X * 50,), {}),
    (aten.ge.Tensor, (ODD, ODD.flip(0)), {}),
    (aten.ge.Scalar, (ODD, 0), {}),
    (aten.le.Tensor, (ODD, ODD.flip(0)), {}),
    (aten.le.Scalar, (ODD, 0), {}),
    (aten.scalar_tensor.default, (0.3,), {}),
    (aten.isclose.default, (ODD, ODD), {"equal_nan": True}),
    (aten.logaddexp.default, (torch.tensor([float("inf"), -float("inf")]),) * 2, {}),
    (aten.round.decimals, (X * 100,), {"decimals": -1}),
    (aten.where.Scalar, (X > 0, 1, 0.5), {}),
    (aten.where.ScalarSelf, (X > 0, 1, Y), {}),
    (aten.lgamma.default, (torch.linspace(-3.3, 9, 40),), {}),
    (aten.std.correction, (X, [0]), {"correction": 0}),
    (aten.var_mean.correction, (X, None), {"correction": 1, "keepdim": True}),
    (aten.linalg_vector_norm.default, (X, 2.5, [0]), {}),
    (aten._cdist_forward.default, (X, Y, 1.0, None), {}),
    (aten.nanmedian.dim, (X, 1), {}),
    (aten.median.dim, (X, 1, True), {}),
    (aten.kthvalue.default, (X, 2, 0, True), {}),
    (aten.sort.stable, (WHOLE.abs() % 2,), {"stable": True, "descending": True}),
    (aten.sort.stable, (X,), {"stable": False}),
    (aten.searchsorted.Tensor, (X.sort(-1)[0], Y), {"right": True, "out_int32": False}),
    (aten.searchsorted.Tensor, (X.sort(-1)[0], Y), {"right": True, "out_int32": True}),
    (aten.cumsum.default, (X > 0, 0), {}),
    (aten.cummax.default, (WHOLE, 0), {}),
    (aten.cumprod.default, (X, 1), {"dtype": torch.float64}),
    (aten.diagonal_copy.default, (X, -1), {}),
    (aten.diagonal.default, (VOLUME, 2, -1, 1), {}),
    (aten.as_strided_copy.default, (X, [2, 3], [4, 1], 1), {}),
    (aten.index_add.default, (X, 0, ROWS, Y), {"alpha": 2}),
    (aten.index_add.default, (X.long(), 1, ROWS, Y.long()[:, :3]), {}),
    (aten.index_put.default, (X, [ROWS, ROWS], Y[:, 0], True), {}),
    (aten.index_put.default, (X, [None, ROWS], Y[:, :3], True), {}),
    (aten.index_put.default, (VOLUME[0], [ROWS, None, ROWS], normal(3, 6, 4)[:, :1, :], True), {}),
    (aten.scatter_reduce.two, (X, 0, ROWS[None], Y, "mean"), {"include_self": False}),
    (aten.scatter_reduce.two, (X, 0, ROWS[None], Y, "prod"), {}),
    (aten.scatter_reduce.two, (X, 1, ROWS[:, None], Y, "amin"), {"include_self": False}),
    (aten.scatter_reduce.two, (X, 1, ROWS[:, None], Y, "sum"), {}),
    (aten.embedding_renorm.default, (X.clone(), torch.tensor([0, 1, 2]), 1.0, 2.0), {}),
    (
        aten._embedding_bag.default,
        (X, ROWS, torch.tensor([0, 0, 2]), False, 1),
        {},
    ),
    (
        aten._embedding_bag_forward_only.default,
        (X, ROWS, torch.tensor([0, 2]), False, 0, False, torch.tensor([1.0, 2.0, 3.0])),
        {},
    ),
    (aten._trilinear.default, (X, normal(5, 4, 2), normal(3, 2), [1, 3], [0], [1, 2], [2, 3]), {}),
    (aten.avg_pool3d.default, (VOLUME, [3, 2, 2], [2, 2, 1], [1, 1, 0], True, False), {}),
    (aten.avg_pool2d.default, (VOLUME[0], 3, [], 1, False, True, 5), {}),
    (aten.max_pool3d_with_indices.default, (VOLUME, [2, 3, 2], [2, 1, 2], [1, 1, 0]), {}),
    (aten.max_pool2d_with_indices.default, (VOLUME[0], [3, 2], [2, 2], [1, 1], [1, 2], True), {}),
    (aten._adaptive_avg_pool2d.default, (VOLUME[0], [3, 3]), {}),
    (aten.adaptive_avg_pool2d.default, (VOLUME[0], [1, 3]), {}),
    (aten._adaptive_avg_pool3d.default, (VOLUME, [2, 3, 1]), {}),
    (aten.adaptive_max_pool3d.default, (VOLUME, [2, 3, 1]), {}),
    (aten._upsample_nearest_exact1d.vec, (VOLUME[0, 0, None, :, 0], [7], None), {}),
    (aten._upsample_nearest_exact3d.vec, (VOLUME, None, [1.5, 2.0, 0.5]), {}),
    (aten.upsample_nearest1d.vec, (VOLUME[0, 0, None, :, 0], None, [1.5]), {}),
    (aten.upsample_bilinear2d.vec, (VOLUME[0][None, 0], [3, 9], True, None), {}),
    (aten._upsample_bilinear2d_aa.default, (VOLUME[:, 0], [3, 9], False), {}),
    (aten.grid_sampler_2d.default, (VOLUME[:, 0], normal(1, 3, 4, 2), 0, 1, True), {}),
    (aten.masked_scatter.default, (X, Y > 0, normal(20)), {}),
    (aten.masked_scatter.default, (X, torch.tensor([True, False, True, False]), normal(6)), {}),
    (aten.index_put.default, (X, [X[:, 0] > 0], normal(1, 4)), {}),
    (aten.index_put.default, (X, [X > 0], torch.arange(int((X > 0).sum())) * 1.0), {}),
    (aten.index_put.default, (X, [torch.tensor([True, False, True])], normal(2, 4)), {}),
    (aten.index_put.default, (X, [torch.zeros(3, dtype=torch.bool)], normal(0, 4)), {}),
    (aten.scatter.value, (X, 0, ROWS[None], 7), {}),
    (aten.squeeze.dim, (X, 1), {}),
    (aten.squeeze.dims, (VOLUME, [0, 1]), {}),
    (aten.squeeze.dims, (VOLUME, [1, 2]), {}),
    (aten.permute.default, (normal(2, 1, 3, 2, 1, 2, 2), [5, 1, 2, 3, 4, 0, -1]), {}),
    (aten.permute.default, (normal(2, 3, 2, 2, 2, 3), [0, 1, 3, 2, 4, 5]), {}),
    (aten.transpose.int, (normal(2, 1, 3, 2, 2, 2), 1, -2), {}),
    (aten.expand.default, (normal(3, 2, 1, 2, 1, 2), [3, -1, 4, 2, 2, 2]), {}),
    (aten.expand.default, (normal(2, 1, 2), [2, 2, 2, 2, 3, 2]), {}),
    (aten.unbind.int, (MANY, 2), {}),
    (aten.select.int, (MANY, -2, -1), {}),
    (aten.amax.default, (MANY, [1, 2, -1], True), {}),
    (aten.amin.default, (MANY, [0]), {}),
    (aten.sum.dim_IntList, (MANY, [-1, 3]), {}),
    (aten.mean.dim, (MANY, [4], True), {}),
    (aten.max.dim, (MANY, -1, True), {}),
    (aten.min.dim, (MANY, 2), {}),
    (aten.cumsum.default, (X, -2), {}),
    (
        aten.scaled_dot_product_attention.default,
        (normal(1, 2, 3, 8), normal(1, 2, 3, 8), normal(1, 2, 3, 4), None, 0.0, True),
        {},
    ),
    (
        aten.scaled_dot_product_attention.default,
        (normal(1, 2, 3, 8), normal(1, 2, 5, 8), normal(1, 2, 5, 4), normal(3, 5) > 0),
        {"scale": 0.5},
    ),
    (aten.maximum.default, (ODD, ODD.flip(0)), {}),
    (aten.minimum.default, (ODD, ODD.flip(0)), {}),
    *((op, (ODD, ODD.flip(0)), {}) for op in (aten.gt.Tensor, aten.lt.Tensor)),
    *((op, (ODD, 0), {}) for op in (aten.gt.Scalar, aten.lt.Scalar)),
    (aten.exp2.default, (X,), {}),
    (aten.copy.default, (X, WHOLE), {}),
    (aten.slice_scatter.default, (X, Y[:, :2], 1, -3, -1), {}),
    (aten.slice_scatter.default, (X, Y[:2], 0, None, 2), {}),
    (aten.slice_scatter.default, (X, Y[1:], -2, 1), {}),
    (aten.histc.default, (torch.tensor([-1.0, 0, 0.4, 3, 3.1, 2, 2]), 4, 0, 3), {}),
    (aten.empty.memory_format, ([2, 3],), {"dtype": torch.int64}),
    (aten.empty_permuted.default, ([2, 3], [1, 0]), {}),
    (aten.empty_like.default, (WHOLE,), {"dtype": torch.float32}),
    (
        aten.convolution.default,
        (
            VOLUME,
            normal(4, 3, 2, 3, 2),
            normal(6),
            [2, 1, 3],
            [1, 0, 0],
            [1, 2, 1],
            True,
            [1, 0, 2],
            2,
        ),
        {},
    ),
]


# Compared by tests of their own, the last two in test_states.py.
ELSEWHERE = {aten._grouped_mm.default, aten.scatter.src, aten.where.self}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: str(call[0]))
def test_a_rewrite_equals_its_operation(call: Call) -> None:
    assert _compare(call), "the rewrite has nothing for these arguments"


@pytest.mark.parametrize("rows", [3, 12])
def test_grouped_products_equal_those_of_each_group(rows: int) -> None:
    """torch computes them in bfloat16 only, and transformers has an operation of its own."""
    a, weights, ends = normal(rows, 8), normal(4, 8, 8), torch.tensor([1, 1, rows - 1, rows])
    groups = zip([0, *ends[:-1].tolist()], ends.tolist(), weights, strict=True)
    wanted = torch.cat([a[start:end] @ weight for start, end, weight in groups])
    found = REWRITES[aten._grouped_mm.default].function(a, weights, ends.int())
    torch.testing.assert_close(found, wanted)


def test_operations_that_a_library_defines_late() -> None:
    operation = torch.library.custom_op(
        "export_rewrites_tests::late",
        lambda x: x + 1,
        mutates_args=(),
        schema="(Tensor x) -> Tensor",
    )
    del operation
    rewrites_of("export_rewrites_tests::late", "1 test")(lambda x: x + 1)
    rewrites_of("export_rewrites_tests::never", "1 test")(lambda x: x + 1)
    late = torch.ops.export_rewrites_tests.late.default
    added = set(known_rewrites()) - set(REWRITES)
    assert late in added
    assert not [op for op in added if "never" in str(op)]
    moe = pytest.importorskip("transformers.integrations.moe")
    assert torch.ops.transformers.grouped_mm_fallback.default in known_rewrites(), moe


@pytest.mark.parametrize("family", FAMILIES)
def test_rewrites_equal_their_operations_in_the_programs_of_the_sweep(family: str) -> None:
    calls = _calls_of(family)
    assert len(calls) > 20
    for call in calls:
        _compare(call)


def test_every_rewrite_is_shown_equal() -> None:
    shown = {call[0] for call in CALLS if _compare(call)}
    for family in FAMILIES:
        shown |= {call[0] for call in _calls_of(family) if _compare(call)}
    missing = [str(op) for op in REWRITES if op not in shown and op not in ELSEWHERE]
    assert not missing


def test_every_rewrite_says_why() -> None:
    assert all(
        any(char.isdigit() for char in rewrite.why) or "torch's own" in rewrite.why
        for rewrite in REWRITES.values()
    )


def _compare(call: Call) -> bool:
    """Compare a rewrite with its operation; False where it has nothing for these arguments."""
    op, args, kwargs = call
    with torch.no_grad():
        made = REWRITES[op].function(*args, **kwargs)
        if made is NotImplemented:
            return False
        wanted = op(*args, **kwargs)
    got, wanted = tree_leaves(made), tree_leaves(wanted)
    if op is aten.sort.default:  # the order of equals is nobody's promise
        dim = args[1] if len(args) > 1 else -1
        torch.testing.assert_close(args[0].gather(dim, got[1]), wanted[0])
        got, wanted = got[:1], wanted[:1]
    elif "aten.empty" in str(op):  # of numbers nobody wrote
        got = [torch.empty_like(got[0]).copy_(wanted[0])]
    elif "_embedding_bag" in str(op) or "log_sigmoid" in str(
        op
    ):  # what else it returns is for gradients
        got, wanted = got[:1], wanted[:1]
    assert len(got) == len(wanted), op
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(
            one, other, rtol=1e-4, atol=2e-5, equal_nan=True, msg=lambda m: f"{op}{args}: {m}"
        )
    return True


@cache
def _calls_of(family: str) -> list[Call]:
    return [call for program in FAMILIES[family] for call in _calls(program)]


def _calls(program: Program) -> Iterator[Call]:
    """Yield the calls of operations that have rewrites, with the values they get."""
    seen: list[Call] = []

    class Recorder(fx.Interpreter):
        def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if target in REWRITES:
                seen.append((target, args, kwargs))
            return super().call_function(target, args, kwargs)

    model = program.make()
    with torch.no_grad():
        exported = torch.export.export(model, program.inputs)
        Recorder(exported.module()).run(*program.inputs)
    yield from seen
