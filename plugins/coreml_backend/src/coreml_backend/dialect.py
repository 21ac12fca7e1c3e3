"""Operations that coremltools takes, and those it gets wrong."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import coremltools as ct
import torch
from coremltools.converters.mil.frontend.torch.torch_op_registry import is_torch_fx_node_supported
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram

from export_rewrites import REWRITES, Dialect, left_over, module_of, unfit
from palette_core.errors import BackendError

aten = torch.ops.aten
_RANK = 5
_VIEWS = (
    aten.clone.default,
    aten.expand.default,
    aten.permute.default,
    aten.reshape.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.view.default,
    aten._unsafe_view.default,
)
# Converted without a word into something else, or refused, for some arguments; the sweep of the
# tests tells. What REWRITES has nothing better for stays.
_REWRITTEN = (
    aten.acosh.default,
    aten.add.Scalar,
    aten.add.Tensor,
    aten.adaptive_max_pool2d.default,
    aten.amax.default,
    aten.amin.default,
    aten.argmax.default,
    aten.asinh.default,
    aten.avg_pool2d.default,
    aten.avg_pool3d.default,
    aten.bucketize.Tensor,
    aten.clamp.Tensor,
    aten.clamp.default,
    aten.clamp_max.default,
    aten.clamp_min.default,
    aten.constant_pad_nd.default,
    aten.cumsum.default,
    aten.diagonal.default,
    aten.expand.default,
    aten.full_like.default,
    aten.gelu.default,
    aten.index_put.default,
    aten.index_select.default,
    aten.linalg_vector_norm.default,
    aten.matmul.default,
    aten.max.dim,
    aten.max_pool2d.default,
    aten.max_pool2d_with_indices.default,
    aten.max_pool3d_with_indices.default,
    aten.mean.dim,
    aten.min.dim,
    aten.mv.default,
    aten.new_full.default,
    aten.new_zeros.default,
    aten.ones.default,
    aten.ones_like.default,
    aten.permute.default,
    aten.reciprocal.default,
    aten.rsub.Scalar,
    aten.rsub.Tensor,
    aten.scaled_dot_product_attention.default,
    aten.scatter_add.default,
    aten.scatter.src,
    aten.scatter.value,
    aten.searchsorted.Tensor,
    aten.select.int,
    aten.softplus.default,
    aten.std.correction,
    aten.sub.Scalar,
    aten.sub.Tensor,
    aten.sum.dim_IntList,
    aten.transpose.int,
    aten.tril.default,
    aten.triu.default,
    aten.unbind.int,
    aten.upsample_bilinear2d.vec,
    aten.upsample_nearest2d.vec,
    aten._upsample_bilinear2d_aa.default,
    aten._upsample_bilinear2d_aa.vec,
    aten.var.correction,
    aten.where.Scalar,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
    aten.where.self,
    aten.zeros.default,
    aten.zeros_like.default,
)
# Known to coremltools, and refused in a late step that names no operation of torch.
_NOT_TAKEN = ("fft_", "_fft_", "stft", "istft")
# Names that coremltools knows and converts wrongly, or for few arguments only, where torch's own
# decomposition is in operations that it converts well.
_LEFT_TO_TORCH = frozenset(
    {
        aten.affine_grid_generator.default,
        aten.col2im.default,
        aten.cross.default,
        aten.einsum.default,
        aten.max_pool3d.default,
        aten.mse_loss.default,
        aten.pad.default,
        aten.rms_norm.default,
        aten.std.default,
        aten.std.dim,
        aten.var.default,
        aten.var.dim,
        aten._upsample_bilinear2d_aa.vec,
    }
)


@cache
def dialect() -> Dialect:
    """Return what the installed coremltools takes."""
    assert set(_REWRITTEN) <= set(REWRITES)
    return Dialect(takes, rewrite=frozenset(_REWRITTEN))


def takes(op: OpOverload) -> bool:
    """Return whether coremltools has a conversion for an operation, right or wrong."""
    if op in _LEFT_TO_TORCH:
        return False
    node = fx.Graph().create_node("call_function", op, ())
    return takes_node(node)


def check_operations(program: ExportedProgram) -> None:
    """Refuse operations of a rewritten program that are known not to convert, or not to be right.

    Raises:
        BackendError: naming each operation, and the module that holds it.
    """
    unknown = left_over(program, takes_node)
    sentences = unfit(program, "Core ML")
    sentences += [
        f"{name}: a tensor of {rank} dimensions, of which Core ML takes {_RANK}"
        for name, rank in _too_deep(program).items()
    ]
    if unknown:
        sentences.append(
            f"coremltools {ct.__version__} has no conversion for {', '.join(unknown)}; write the "
            "model without them, or register one with "
            "coremltools.converters.mil.register_torch_op"
        )
    if sentences:
        raise BackendError("; ".join(sentences))


def _too_deep(program: ExportedProgram) -> dict[str, int]:
    """Return operations that make or read too many dimensions.

    coremltools folds what lies between two views.
    """
    found = {}
    for node in program.graph.nodes:
        ranks = [
            value.dim()
            for read in (node, *(n for n in node.all_input_nodes if n.op == "call_function"))
            if isinstance(value := read.meta.get("val"), Tensor)
        ]
        if node.op != "placeholder" and node.target not in _VIEWS and max(ranks, default=0) > _RANK:
            name = f"{node.target} ({module_of(node)})" if node.op != "output" else "the output"
            found[name] = max(ranks)
    return found


def takes_node(node: fx.Node) -> bool:
    """Return whether coremltools has a conversion for a node.

    Its own check asserts on operations whose name ends like one of an in-place operation, and looks
    for those of other libraries without the library's name, by which it converts them.
    """
    name = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
    if name.endswith("_") or name.startswith(_NOT_TAKEN):
        return False
    if is_torch_fx_node_supported(node):
        return True
    if not isinstance(node.target, OpOverload) or node.target.namespace == "aten":
        return False
    named: Any = SimpleNamespace(op=node.op, target=node.target._schema.name)
    return bool(is_torch_fx_node_supported(named))
