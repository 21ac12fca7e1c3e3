"""Quantized activations, in the operations that coremltools converts.

Tools that quantize activations for Core ML leave ``torch.quantize_per_tensor`` in the model, with
a tensor that torch says is quantized. coremltools 9 takes it out of ``torch.jit.trace`` only; out
of ``torch.export`` it wants integers, and scale and zero point given again where they are floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from export_rewrites import held_constants

aten = torch.ops.aten
_QUANTIZE = aten.quantize_per_tensor.tensor_qparams
_INTEGERS: Mapping[Any, torch.dtype] = {torch.qint8: torch.int8, torch.quint8: torch.uint8}


def integers_for_quantized(program: ExportedProgram) -> None:
    """Let quantized tensors be integers, where all that reads them makes them floats again.

    Args:
        program: changed in place; others than those of 8 bits with constant scale and zero point
            stay as they are.
    """
    graph, held = program.graph, held_constants(program)
    for node in graph.find_nodes(op="call_function", target=_QUANTIZE):
        numbers = _numbers(node, held)
        back = list(node.users)
        if numbers is not None and all(user.target is aten.dequantize.self for user in back):
            _write(graph, node, back, numbers)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _numbers(node: fx.Node, held: Mapping[str, Tensor]) -> tuple[Any, ...] | None:
    """Return the arguments that both operations have behind the tensor; None if unknown."""
    _, scale, zero, dtype = node.args
    factor, shift = (held.get(getattr(each, "name", "")) for each in (scale, zero))
    if dtype not in _INTEGERS or factor is None or shift is None:
        return None
    if factor.numel() != 1 or shift.numel() != 1:
        return None
    kind = _INTEGERS[dtype]
    limits = torch.iinfo(kind)
    return float(factor), int(shift), limits.min, limits.max, kind


def _write(graph: fx.Graph, node: fx.Node, back: list[fx.Node], numbers: tuple[Any, ...]) -> None:
    # Imported for the operators that it defines.
    from torch.ao.quantization.fx import _decomposed  # noqa: F401

    rounded = torch.ops.quantized_decomposed.quantize_per_tensor.default
    floats = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    source: Any = node.args[0]
    with graph.inserting_before(node):
        integers = graph.call_function(rounded, (source, *numbers))
    integers.meta = {**node.meta, "val": source.meta["val"].to(numbers[-1])}
    for user in back:
        with graph.inserting_before(user):
            made = graph.call_function(floats, (integers, *numbers))
        made.meta = dict(user.meta)
        user.replace_all_uses_with(made)
