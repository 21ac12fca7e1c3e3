"""Parts of concatenations, taken of what was joined.

coremltools 9 looks through a concatenation for parts whose values it knows, and takes floats for
integers there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

aten = torch.ops.aten
_JOIN, _CUT, _PICK = aten.cat.default, aten.slice.Tensor, aten.select.int
_PIECES = (aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int)


def part_before_joining(program: ExportedProgram) -> None:
    """Let what takes parts of a concatenation, along its axis, take them of what was joined.

    Args:
        program: changed in place; what has lengths that may vary stays as it is.
    """
    graph = program.graph
    # Outer ones first: parts of them may be parts of inner ones.
    for node in [node for node in reversed(graph.nodes) if node.target is _JOIN]:
        sources: Any = node.args[0]
        sizes = [source.meta["val"].shape for source in sources]
        if not all(isinstance(length, int) for size in sizes for length in size):
            continue
        for user in list(node.users):
            _part(graph, node, user)
    graph.eliminate_dead_code()
    graph.lint()
    program.graph_module.recompile()


def _part(graph: fx.Graph, joined: fx.Node, user: fx.Node) -> None:
    """Write what one node takes of a concatenation."""
    dim, rank = _dim(joined), joined.meta["val"].dim()
    length = joined.meta["val"].shape[dim]
    args: Any = user.args
    if args[:1] != (joined,) or not _along(user, dim, rank) or _is_output(user):
        return
    if user.target is _CUT:
        start, stop, step = (*args[2:], None, None, None)[:3]
        begin, end, by = slice(start, stop, step).indices(length)
        if by == 1 and begin < end:
            user.replace_all_uses_with(_taken(graph, joined, user, begin, end))
    elif user.target is _PICK:
        user.replace_all_uses_with(_picked(graph, joined, user, args[2] % length))
    elif user.target in _PIECES:
        ends = [0]
        for piece in user.meta["val"]:
            ends.append(ends[-1] + (1 if piece.dim() < rank else piece.shape[dim]))
        for item in list(user.users):
            index: Any = item.args[1]
            begin, end = ends[index % len(ends[1:])], ends[index % len(ends[1:]) + 1]
            if user.target is aten.unbind.int:
                item.replace_all_uses_with(_picked(graph, joined, item, begin))
            else:
                item.replace_all_uses_with(_taken(graph, joined, item, begin, end))


def _is_output(user: fx.Node) -> bool:
    """Return whether a node, or an item of it, goes by its name among the program's outputs."""
    items = user.users if user.target in _PIECES else [user]
    readers = [reader for item in items for reader in item.users]
    return any(reader.op == "output" for reader in readers)


def _dim(joined: fx.Node) -> int:
    dim: Any = joined.args[1] if len(joined.args) > 1 else joined.kwargs.get("dim", 0)
    return int(dim % joined.meta["val"].dim())


def _along(user: fx.Node, dim: int, rank: int) -> bool:
    """Return whether a node takes parts along an axis."""
    at = 2 if user.target in _PIECES and user.target is not aten.unbind.int else 1
    given: Any = user.args[at] if len(user.args) > at else user.kwargs.get("dim", 0)
    return isinstance(given, int) and given % rank == dim


def _taken(graph: fx.Graph, joined: fx.Node, before: fx.Node, begin: int, end: int) -> fx.Node:
    """Return a range of a concatenation, of what was joined."""
    dim, first = _dim(joined), 0
    parts: list[fx.Node] = []
    sources: Any = joined.args[0]
    with graph.inserting_before(before):
        for source in sources:
            length = source.meta["val"].shape[dim]
            low, high = max(begin - first, 0), min(end - first, length)
            first += length
            if low < high:
                whole = (low, high) == (0, length)
                parts.append(source if whole else _new(graph, _CUT, source, dim, low, high))
        return parts[0] if len(parts) == 1 else _new(graph, _JOIN, parts, dim)


def _picked(graph: fx.Graph, joined: fx.Node, before: fx.Node, at: int) -> fx.Node:
    """Return one place of a concatenation, without its axis, of what was joined."""
    dim = _dim(joined)
    taken = _taken(graph, joined, before, at, at + 1)
    with graph.inserting_before(before):
        return _new(graph, aten.squeeze.dims, taken, [dim])


def _new(graph: fx.Graph, op: Any, *args: Any) -> fx.Node:
    made = graph.call_function(op, args)
    values = fx.node.map_arg(args, lambda source: source.meta["val"])
    first: fx.Node = made.all_input_nodes[0]
    made.meta = {**first.meta, "val": op(*values)}
    return made
