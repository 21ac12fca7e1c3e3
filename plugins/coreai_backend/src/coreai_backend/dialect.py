"""Operations that coreai-torch takes, and those it gets wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import ExportedProgram

from coreai_backend.ir import quiet
from export_rewrites import Dialect, left_over, module_of, unfit
from palette_core.errors import BackendError
from palette_core.tensors import OP_NAME

aten = torch.ops.aten
# Converted without a word into something else, for some arguments; the sweep of the tests tells.
_WRONG = (
    aten.add.Tensor,
    aten.add.Scalar,
    aten.sub.Tensor,
    aten.sub.Scalar,
    aten.avg_pool2d.default,
    aten.avg_pool3d.default,
    aten.ge.Scalar,
    aten.ge.Tensor,
    aten.le.Scalar,
    aten.le.Tensor,
    aten.max_pool2d_with_indices.default,
    aten.scalar_tensor.default,
    aten.scaled_dot_product_attention.default,
    aten.upsample_nearest2d.vec,
)
# Refused for some arguments.
_PARTLY = (
    aten.convolution.default,
    aten.index_put.default,
    aten.linalg_vector_norm.default,
    aten.reciprocal.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
)


@cache
def dialect() -> Dialect:
    """Return what the installed coreai-torch takes."""
    with quiet():
        from coreai_torch import get_decomp_table
        from coreai_torch._aten_to_core import _aten_to_core_resolver
    decomposed = set(get_decomp_table())

    def takes(op: OpOverload) -> bool:
        if op.namespace != "aten":
            return str(op).startswith(OP_NAME.replace("::", ".")) or op.namespace == "coreai"
        return str(op).removeprefix("aten.") in _aten_to_core_resolver and op not in decomposed

    return Dialect(takes, rewrite=frozenset((*_WRONG, *_PARTLY)))


def check_operations(program: ExportedProgram) -> None:
    """Refuse operations of a rewritten program that are known not to convert, or not to be right.

    Raises:
        BackendError: naming each operation, and the module that holds it.
    """
    unknown = left_over(program, _takes_node)
    sentences = unfit(program, "Core AI")
    if unknown:
        sentences.append(
            f"coreai-torch {version('coreai-torch')} has no lowering for {', '.join(unknown)}; "
            "write the model without them, or register one and convert with "
            "coreai_backend.register_lowerings"
        )
    if sentences:
        raise BackendError("; ".join(sentences))


def _takes_node(node: fx.Node) -> bool:
    with quiet():
        from coreai_torch._aten_to_core import _aten_to_core_resolver
    op = node.target
    if not isinstance(op, OpOverload) or op.namespace != "aten":
        return True  # left to the converter
    return str(op).removeprefix("aten.") in _aten_to_core_resolver


@contextlib.contextmanager
def latest_node(converter: Any) -> Iterator[Callable[[], str]]:
    """Yield what tells the node that the converter works on, in words; its errors do not."""
    convert = converter._handle_call_function_op
    latest: list[fx.Node] = []

    def noted(node: fx.Node) -> Any:
        latest[:] = [node]
        return convert(node)

    converter._handle_call_function_op = noted
    try:
        yield lambda: f"{latest[0].target} ({module_of(latest[0])})" if latest else "the model"
    finally:
        converter._handle_call_function_op = convert
