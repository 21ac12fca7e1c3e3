"""Parts of a program that no input reaches, computed when it is exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

_PREFIX = "folded_constant"


def fold_constants(program: ExportedProgram, unwanted: Callable[[fx.Node], bool]) -> None:
    """Compute what hangs on constants only, where that is in the way, and store the results.

    Position encodings in float64 or bfloat16, complex rotations, inverses of fixed matrices. Other
    constants stay computed by the program, where they may be smaller than their result; palettized
    weights are never decoded.

    Args:
        program: changed in place.
        unwanted: whether the converter lacks what a node does.
    """
    held = held_constants(program)
    fixed: dict[fx.Node, bool] = {}  # whether something unwanted is in what a node is made of
    for node in program.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            if node.op == "placeholder" and node.name in held:
                fixed[node] = unwanted(node)
        elif node.op == "call_function" and _repeatable(node):
            inputs = node.all_input_nodes
            if all(source in fixed for source in inputs):
                fixed[node] = unwanted(node) or any(fixed[source] for source in inputs)
    values: dict[fx.Node, Any] = {}
    edge = [node for node, inside in fixed.items() if inside and _wanted(node, fixed)]
    with torch.no_grad():
        found = [_value(node, values, held) for node in edge]
    for node, value in zip(edge, found, strict=True):
        _replace(program, node, value)
    program.graph.eliminate_dead_code()


def _wanted(node: fx.Node, fixed: Mapping[fx.Node, bool]) -> bool:
    """Return whether something that is computed at every run reads a node."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or all(user in fixed for user in node.users):
        return False
    return node.op == "call_function" or value.dim() == 0


def held_constants(program: ExportedProgram) -> Mapping[str, Tensor]:
    """Return constant tensors by the name of their placeholder; not what the model writes to."""
    signature = program.graph_signature
    mutated = set(signature.buffers_to_mutate.values())
    tensors = {**program.constants, **program.state_dict}
    return {
        spec.arg.name: tensors[spec.target]
        for spec in signature.input_specs
        if spec.target in tensors and spec.target not in mutated
    }


def _repeatable(node: fx.Node) -> bool:
    # Operators of stored forms have namespaces of their own.
    if getattr(node.target, "namespace", "aten") not in ("aten", "prims"):
        return False
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded not in tags


def _value(node: fx.Node, values: dict[fx.Node, Any], held: Mapping[str, Tensor]) -> Any:
    if node not in values:
        if node.op == "placeholder":
            values[node] = held[node.name].detach()
        else:
            args, kwargs = fx.node.map_arg(
                (node.args, node.kwargs), lambda source: _value(source, values, held)
            )
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return values[node]


def _replace(program: ExportedProgram, node: fx.Node, value: Tensor) -> None:
    """Let users of a node read a stored tensor."""
    meta = node.meta["val"]
    if not value.dim() and value.is_floating_point():
        # As one factor of many it does not decide what is computed in.
        value, meta = value.float(), meta.float()
    made = add_constant(program, value, meta)
    made.meta["folded"] = (str(node.target), node.meta.get("nn_module_stack"))
    node.replace_all_uses_with(made)


def add_constant(program: ExportedProgram, value: Tensor, like: Tensor) -> fx.Node:
    """Store a tensor in a program, and return the node that reads it.

    Args:
        program: changed in place.
        value: copied only where it is not contiguous.
        like: a fake tensor of its shape and dtype.
    """
    target = f"{_PREFIX}_{len(program.constants)}"
    specs = program.graph_signature.input_specs
    inputs = [i for i, spec in enumerate(specs) if spec.kind is InputKind.USER_INPUT]
    at = inputs[0] if inputs else len(specs)
    placeholders = program.graph.find_nodes(op="placeholder")
    before = placeholders[at] if at < len(placeholders) else next(iter(program.graph.nodes))
    with program.graph.inserting_before(before):
        new: fx.Node = program.graph.placeholder(f"c_{target}")
    new.meta = {"val": like}
    specs.insert(
        at, InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(new.name), target, persistent=None)
    )
    program.constants[target] = value.contiguous()
    return new
