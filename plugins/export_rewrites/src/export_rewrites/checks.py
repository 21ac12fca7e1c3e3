"""Checks of what no rewrite mends: numbers that a runtime does not compute with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind

from export_rewrites.program import module_in, module_of
from export_rewrites.states import EXTREMES

_NARROW = (torch.int8, torch.uint8, torch.int16)
# What moves numbers, and computes none.
_MOVES = frozenset(
    {
        "alias",
        "arange",
        "cat",
        "clone",
        "constant_pad_nd",
        "copy",
        "embedding",
        "expand",
        "flatten",
        "flip",
        "full",
        "full_like",
        "gather",
        "getitem",
        "index",
        "index_select",
        "permute",
        "repeat",
        "reshape",
        "select",
        "slice",
        "split_with_sizes",
        "squeeze",
        "stack",
        "transpose",
        "unsqueeze",
        "view",
        "where",
    }
)


def unfit(program: ExportedProgram, runtime: str) -> list[str]:
    """Return, in words, what a runtime of 32-bit numbers would compute otherwise than torch.

    Complex constants it lacks, float64 would be narrowed, integers of 8 and 16 bits saturate or
    grow where torch's wrap, and a parameter that the model writes to has no place in a file.

    Args:
        program: a rewritten one.
        runtime: its name, for the sentences.
    """
    return [*dict.fromkeys(_sentences(program, runtime))]


def _sentences(program: ExportedProgram, runtime: str) -> Iterator[str]:
    for spec in program.graph_signature.output_specs:
        if spec.kind is OutputKind.PARAMETER_MUTATION:
            yield f"the model writes to its parameter {spec.target!r}, which {runtime} has constant"
    yield from _complex(program, runtime)
    yield from _unbounded(program)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            continue
        if value.dtype is torch.float64 and value.dim() and node.users:
            yield (
                f"{_name(node)}: {runtime} computes float64 in float32; convert the model and its "
                "inputs with .float()"
            )
        elif value.dtype in _NARROW and node.op == "call_function" and not _moves(node):
            name = str(value.dtype).removeprefix("torch.")
            yield (
                f"{_name(node)}: {runtime} does not wrap {name} as torch does; compute in int32, "
                "and keep such tensors for storage"
            )


def _unbounded(program: ExportedProgram) -> Iterator[str]:
    """Yield a sentence for each module with slices whose bounds a rewritten program lacks."""
    found = dict.fromkeys(
        module_of(node)
        for target in EXTREMES
        for node in program.graph.find_nodes(op="call_function", target=target)
    )
    for where in found:
        yield (
            f"sym_max ({where}): a slice begins or ends at a number of the inputs whose bounds are "
            "not known. Write torch._check(start >= 0) and torch._check(start + count <= size) "
            "right before x[start : start + count], each time, and count from the front"
        )


def _complex(program: ExportedProgram, runtime: str) -> Iterator[str]:
    """Yield a sentence if operations read complex constants, which end a converter's process."""
    found: dict[object, str] = {}
    for node in program.graph.nodes:
        values = [n.meta.get("val") for n in node.all_input_nodes if n.op == "placeholder"]
        if node.op == "call_function" and any(
            isinstance(value, Tensor) and value.is_complex() for value in values
        ):
            found.setdefault(node.target, _name(node))
    if found:
        yield (
            f"{', '.join(found.values())}: {runtime} has no complex constants; compute with real "
            "and imaginary parts, a rotary embedding with cosines and sines"
        )


def _moves(node: fx.Node) -> bool:
    """Return whether an operation computes no new numbers, or none that torch would wrap."""
    if getattr(node.target, "namespace", "aten") not in ("aten", "prims"):
        return True  # a runtime's own says what it computes, such as one that quantizes
    name = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
    if name in ("_to_copy", "to"):
        source = node.args[0].meta["val"].dtype  # type: ignore[union-attr]
        return bool(source.is_floating_point or source.itemsize <= node.meta["val"].dtype.itemsize)
    return name.removesuffix("_copy") in _MOVES


def _name(node: fx.Node) -> str:
    if "folded" in node.meta:
        operation, stack = node.meta["folded"]
        return f"{operation} ({module_in(stack)})"
    if node.op == "placeholder":
        return f"input or weight {node.name!r}"
    return f"{node.target} ({module_of(node)})"
