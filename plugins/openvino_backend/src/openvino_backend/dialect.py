"""Operations that OpenVINO's converter takes, and those it gets wrong."""

from __future__ import annotations

import re
from functools import cache

import torch
from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose
from torch._ops import OpOverload
from torch.export import default_decompositions

from export_rewrites import Dialect

aten = torch.ops.aten
# Converted without a word into something else, or refused, for some arguments; the sweep of the
# tests tells.
_REWRITTEN = (
    aten.cumsum.default,
    aten.div.Tensor_mode,
    aten.floor_divide.default,
    aten.kthvalue.default,
    aten.scaled_dot_product_attention.default,
    aten.searchsorted.Tensor,
    aten.std.correction,
    aten.var.correction,
    aten.var_mean.correction,
)
_LACKING = re.compile(r"No conversion rule found for operations: (.+)")


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
    """Return the operations that an error of the converter names."""
    found = _LACKING.search(message)
    return frozenset() if found is None else frozenset(re.split(r",\s*", found[1].strip()))
