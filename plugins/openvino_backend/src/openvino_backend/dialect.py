"""Operations that OpenVINO's converter takes, and those it gets wrong."""

from __future__ import annotations

import re
from functools import cache

import torch
from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram, default_decompositions

from export_rewrites import Dialect, module_of, unfit
from palette_core.errors import BackendError

aten = torch.ops.aten
# Converted without a word into something else, or refused, for some arguments; the sweep of the
# tests tells.
_REWRITTEN = (
    aten.clamp.default,
    aten.clamp_max.default,
    aten.clamp_min.default,
    aten.copy.default,
    aten.cumsum.default,
    aten.div.Tensor_mode,
    aten.floor_divide.default,
    aten.ge.Scalar,
    aten.ge.Tensor,
    aten.gt.Scalar,
    aten.gt.Tensor,
    aten.kthvalue.default,
    aten.le.Scalar,
    aten.le.Tensor,
    aten.lt.Scalar,
    aten.lt.Tensor,
    aten.maximum.default,
    aten.minimum.default,
    aten.scaled_dot_product_attention.default,
    aten.searchsorted.Tensor,
    aten.slice_scatter.default,
    aten.std.correction,
    aten.var.correction,
    aten.var_mean.correction,
)
_LACKING = re.compile(r"No conversion rule found for operations: (.+)")
_FAILED = re.compile(r"^-- (\S+) with a message", re.MULTILINE)


def dialect(lacking: frozenset[str]) -> Dialect:
    """Return what the installed converter takes.

    Args:
        lacking: names of operations that it has said to have no conversion for. It has no list of
            what it knows, so it is asked by converting.
    """
    decomposed = _decomposed()

    def takes(op: OpOverload) -> bool:
        return op not in decomposed and str(op) not in lacking

    return Dialect(takes, rewrite=frozenset(_REWRITTEN))


@cache
def _decomposed() -> frozenset[OpOverload]:
    """Return the operations that OpenVINO's own way from torch would decompose."""
    return frozenset(set(dict(default_decompositions())) - set(ops_to_not_decompose()))


def lacking_in(message: str) -> frozenset[str]:
    """Return the operations that an error of the converter names, as unknown or as failed."""
    found = _LACKING.search(message)
    lacking = [] if found is None else re.split(r",\s*", found[1].strip())
    return frozenset((*lacking, *_FAILED.findall(message)))


def check_operations(program: ExportedProgram) -> None:
    """Refuse what converts, and is known to compute something else.

    Raises:
        BackendError: naming each operation, and the module that holds it.
    """
    sentences = unfit(program, "OpenVINO")
    for node in program.graph.nodes:
        if _rounds_for_nothing(node):
            sentences.append(
                f"{node.target} ({module_of(node)}): OpenVINO leaves out rounding to 16 bits and "
                "back; leave it out of the model"
            )
        elif _turns_by_numbers(node):
            sentences.append(
                f"{node.target} ({module_of(node)}): OpenVINO takes a half turned round and two "
                "numbers for a rotary embedding, and computes something else; give the numbers as "
                "tensors of the length of the axis"
            )
    if sentences:
        raise BackendError("; ".join(dict.fromkeys(sentences)))


def _rounds_for_nothing(node: fx.Node) -> bool:
    """Return whether a node casts down what is cast up again."""
    if not _casts(node, torch.float16) or node.args[0].meta["val"].dtype is not torch.float32:  # type: ignore[union-attr]
        return False
    return any(_casts(user, torch.float32) for user in node.users)


def _casts(node: fx.Node, dtype: torch.dtype) -> bool:
    return "to" in str(node.target) and (
        isinstance(node.meta.get("val"), Tensor) and node.meta["val"].dtype is dtype
    )


def _turns_by_numbers(node: fx.Node) -> bool:
    """Return whether a node is ``x * number + cat([-half, half]) * number``."""
    if node.target is not aten.add.Tensor:
        return False
    factors = [_times_number(arg) for arg in node.args[:2]]
    return all(factors) and any(
        factor.target is aten.cat.default
        and len(factor.args[0]) == 2  # type: ignore[arg-type]
        and any(part.target is aten.neg.default for part in factor.args[0])  # type: ignore[union-attr]
        for factor in factors
        if factor is not None
    )


def _times_number(node: object) -> fx.Node | None:
    """Return what a node multiplies by a number, if that is what it does."""
    if not isinstance(node, fx.Node) or node.target not in (aten.mul.Tensor, aten.mul.Scalar):
        return None
    one, other = node.args[:2]
    if isinstance(other, fx.Node) and other.meta["val"].dim():
        return None
    return one if isinstance(one, fx.Node) else None
