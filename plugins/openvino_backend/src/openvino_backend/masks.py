"""Attention without care for rows that look at nothing, where every row looks at something.

The rewrite of attention opens rows whose mask is false throughout, and sets what they find to
zero, as torch does. Under a causal mask a place looks at the first one at least, so a decoder has
no such rows, and the care takes 8 % of the time of a token of SmolLM2-135M on one thread, dense or
palettized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

aten = torch.ops.aten


def trust_causal_masks(graph: fx.Graph, ranges: Mapping[Any, ValueRanges[Any]]) -> None:
    """Leave out what is done for rows of a mask without a true, where there are none.

    Views of a tensor in its own shape go, too: one stands behind what is left out, and keeps
    the runtime from seeing what follows it.

    Args:
        graph: of a flat program, with values in ``meta``; changed in place.
        ranges: of its symbols, as ``ExportedProgram.range_constraints``.
    """
    masks = _Masks(ranges)
    for some in graph.find_nodes(op="call_function", target=aten.any.dim):
        mask, axis, *keep = some.args
        if axis not in (-1, mask.meta["val"].dim() - 1) or keep != [True]:
            continue
        if masks.have_true(mask):
            for user in list(some.users):
                _trusted(user, some, mask)
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        if _same_shape(node.args[0], node):
            # What is given out keeps a node of its own.
            node.replace_all_uses_with(node.args[0], lambda user: user.op != "output")
    graph.eliminate_dead_code()


def _trusted(user: fx.Node, some: fx.Node, mask: fx.Node) -> None:
    """Let ``where(some, x, y)`` be x, and ``mask | ~some`` the mask."""
    if user.target is aten.where.self and user.args[0] is some:
        if _same_shape(user.args[1], user):
            user.replace_all_uses_with(user.args[1])  # type: ignore[arg-type]
    elif user.target is aten.logical_not.default:
        for opened in list(user.users):
            if opened.target is aten.bitwise_or.Tensor and opened.args == (mask, user):
                opened.replace_all_uses_with(mask)


def _same_shape(one: Any, other: fx.Node) -> bool:
    # Compared as numbers, sizes would become conditions of the program.
    first, second = (
        [_expression(size) for size in node.meta["val"].shape] for node in (one, other)
    )
    return first == second


class _Masks:
    """Bounds of the values of a program, all of them integers."""

    def __init__(self, ranges: Mapping[Any, ValueRanges[Any]]) -> None:
        self._ranges = dict(ranges)

    def have_true(self, mask: Any) -> bool:
        """Return whether ``mask`` surely is true in the first column of each row.

        It is where it tells columns that begin at no more than the least of what they are
        compared with; and there is a column wherever there is a row.
        """
        shape = mask.meta["val"].shape
        if len(shape) < 2 or self._least_size(shape[-1], shape[-2]) < 0:
            return False
        while mask.target is aten.expand.default or (
            mask.target is aten.unsqueeze.default and _last_axis_stays(mask)
        ):
            mask = mask.args[0]
        if mask.target is not aten.le.Tensor:
            return False
        columns, rows = mask.args
        first, least = self._first(columns), self._least(rows)
        return first is not None and least is not None and first <= least

    def _least_size(self, columns: Any, rows: Any) -> Any:
        """Return by how many columns are more than rows, at the least."""
        return self._bounds(_expression(columns) - _expression(rows))[0]

    def _bounds(self, expression: Any) -> tuple[Any, Any]:
        """Return the least and the most that an expression can be."""
        if isinstance(expression, int):
            return expression, expression
        found = bound_sympy(expression, self._ranges)
        return found.lower, found.upper

    def _first(self, node: Any) -> Any:
        """Return the most that stands in the first place of the last axis, if that is known."""
        found = _number(node)
        if found is not None:
            return self._bounds(found)[1]
        if not isinstance(node, fx.Node):
            return None
        if node.target is aten.arange.start_step:
            return self._first(node.args[0])
        if node.target is aten.unsqueeze.default and _last_axis_stays(node):
            return self._first(node.args[0])
        return self._sum(node, self._first)

    def _least(self, node: Any) -> Any:
        """Return what no value of a tensor is below, if that is known."""
        found = _number(node)
        if found is not None:
            return self._bounds(found)[0]
        if not isinstance(node, fx.Node):
            return None
        if node.target is aten.arange.start_step and _climbs(node):
            return self._least(node.args[0])
        if node.target is aten.unsqueeze.default:
            return self._least(node.args[0])
        return self._sum(node, self._least)

    def _sum(self, node: fx.Node, bound: Callable[[Any], Any]) -> Any:
        if node.target is not aten.add.Tensor or node.kwargs or not _whole(node):
            return None
        parts = [bound(part) for part in node.args]
        return None if None in parts else sum(parts)


def _number(node: Any) -> Any:
    """Return the expression of a whole number or a size, or None for a tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else node
    return None if isinstance(value, (Tensor, float)) or value is None else _expression(value)


def _expression(size: Any) -> Any:
    return size if isinstance(size, int) else size.node.expr


def _climbs(node: fx.Node) -> bool:
    step = node.args[2] if len(node.args) > 2 else 1
    return isinstance(step, int) and step > 0


def _last_axis_stays(node: fx.Node) -> bool:
    axis, dim = node.args[1], node.meta["val"].dim()
    return axis not in (-1, dim - 1)


def _whole(node: fx.Node) -> bool:
    return node.meta["val"].dtype in (torch.int64, torch.int32)
