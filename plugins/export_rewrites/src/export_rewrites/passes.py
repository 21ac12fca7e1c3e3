"""Passes over the graph of a program that change nothing of what it computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

aten = torch.ops.aten
CHECKS = (
    aten._assert_tensor_metadata.default,
    aten._assert_async.msg,
    aten._assert_scalar.default,
    aten.sym_constrain_range_for_size.default,
    aten.sym_constrain_range.default,
)
_COPIES = (aten.alias.default, aten.lift_fresh_copy.default, aten.detach.default)
_RESHAPED = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
_WITH_ONES = (
    aten.clone.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
)


def drop_constant_inputs(program: ExportedProgram) -> None:
    """Take inputs that are no tensors out: their values are in the program already."""
    specs = program.graph_signature.input_specs
    constants = {spec.arg.name for spec in specs if isinstance(spec.arg, ConstantArgument)}
    for node in program.graph.find_nodes(op="placeholder"):
        if node.name in constants and not node.users:
            program.graph.erase_node(node)
            specs[:] = [spec for spec in specs if spec.arg.name != node.name]


def drop_checks(graph: fx.Graph) -> None:
    """Take out assertions, and copies that nothing distinguishes from what they copy."""
    for node in list(graph.nodes):
        if node.target in CHECKS:
            graph.erase_node(node)
        elif node.target in _COPIES:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def free_views(graph: fx.Graph) -> None:
    """Let views copy: what a rewrite returns may lie otherwise in memory than torch's own."""
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default


def join_views(graph: fx.Graph) -> None:
    """Let a view read what the views before it read: those in between may have too many axes."""
    for node in graph.nodes:
        if node.target not in _RESHAPED:
            continue
        source, copies = node.args[0], False
        while source.target in (*_RESHAPED, *_WITH_ONES):
            copies |= source.target is aten.clone.default
            source = source.args[0]
        if copies:
            with graph.inserting_before(node):
                layout: dict[str, Any] = {"memory_format": torch.contiguous_format}
                copy = graph.call_function(aten.clone.default, (source,), layout)
            copy.meta = dict(source.meta)
            source = copy
        node.args = (source, *node.args[1:])


def fill_defaults(graph: fx.Graph) -> None:
    """Write out positional arguments that ``torch.export`` leaves out as defaults.

    coremltools 9.0 and coreai-torch 0.4.3 count the arguments of some operations.
    """
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            continue
        if node.target.namespace != "aten":
            continue
        arguments = [a for a in node.target._schema.arguments if not a.kwarg_only]
        missing = arguments[len(node.args) :]
        if any(a.name in node.kwargs for a in missing):
            continue
        node.args = (*node.args, *(a.default_value for a in missing))


def rename_words(program: ExportedProgram) -> None:
    """Rename nodes that are called as an argument is written.

    coremltools 9.0 takes ``rounding_mode="floor"`` for the result of a node ``floor``.
    """
    words: set[str] = set()
    for node in program.graph.nodes:
        fx.node.map_aggregate(
            (node.args, node.kwargs), lambda x: words.add(x) if isinstance(x, str) else None
        )
    for node in program.graph.nodes:
        if node.name in words and node.op == "call_function":
            node._rename(f"{node.name}_result")


def name_outputs(program: ExportedProgram) -> None:
    """Let the signature name the nodes that are given out now."""
    (output,) = program.graph.find_nodes(op="output")
    for spec, node in zip(program.graph_signature.output_specs, output.args[0], strict=True):
        if isinstance(node, fx.Node):
            spec.arg.name = node.name


def drop_second_names(program: ExportedProgram) -> None:
    """Take out names of buffers under which nothing reads them, as another one stands for them.

    torch traces a buffer that hangs in several places by one of its names, and keeps the others.
    Where the model writes to it, torch then decomposes no program with the same tensor twice.
    """
    held = {**program.state_dict, **program.constants}
    nodes = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    specs = [s for s in program.graph_signature.input_specs if s.kind is InputKind.BUFFER]
    read = {id(held[spec.target]) for spec in specs if nodes[spec.arg.name].users}
    for spec in specs:
        node = nodes[spec.arg.name]
        if not node.users and id(held[spec.target]) in read:
            program.graph.erase_node(node)
            program.graph_signature.input_specs.remove(spec)
            program.graph_module.recompile()


def drop_unread(program: ExportedProgram) -> None:
    """Take out tensors that nothing reads any more; converters read all of them."""
    signature = program.graph_signature
    written = set(signature.buffers_to_mutate.values())
    kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    specs = {
        spec.arg.name: spec
        for spec in signature.input_specs
        if spec.kind in kinds and spec.target not in written
    }
    for node in program.graph.find_nodes(op="placeholder"):
        if node.name in specs and not node.users:
            program.graph.erase_node(node)
            signature.input_specs.remove(specs[node.name])
