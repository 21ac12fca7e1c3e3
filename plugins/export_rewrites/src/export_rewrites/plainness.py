"""Signs of programs whose operations can be looked at one by one."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch._subclasses import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from export_rewrites.passes import CHECKS

_TENSORS = (
    InputKind.USER_INPUT,
    InputKind.PARAMETER,
    InputKind.BUFFER,
    InputKind.CONSTANT_TENSOR,
)


def is_plain(program: ExportedProgram) -> bool:
    """Return whether a program only computes tensors of known sizes from tensors.

    It writes to none, and has no numbers that depend on its inputs, no objects, no subgraphs.
    """
    signature = program.graph_signature
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in signature.output_specs):
        return False
    if any(spec.kind not in _TENSORS for spec in signature.input_specs):
        return False
    return all(_is_plain_node(node) for node in program.graph.nodes)


def _is_plain_node(node: fx.Node) -> bool:
    if node.op == "output" or node.target in CHECKS:
        return True
    value = node.meta.get("val")
    if node.op == "placeholder" and not isinstance(value, Tensor):
        return not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))
    if node.target is operator.getitem:
        return _is_static(value)
    if node.op == "call_function":
        target = node.target
        if not isinstance(target, OpOverload) or target._schema.is_mutable:
            return False
        values = value if isinstance(value, (list, tuple)) else [value]
        return bool(values) and all(_is_static(each) for each in values)
    return node.op == "placeholder" and _is_static(value)


def _is_static(value: Any) -> bool:
    """Return whether a value is a plain tensor whose sizes are known."""
    return (
        type(value) in (FakeTensor, torch.nn.Parameter)
        and isinstance(value, FakeTensor)
        and value.layout is torch.strided
        and not value.is_quantized
        and all(type(size) is int for size in (*value.shape, *value.stride()))
    )
