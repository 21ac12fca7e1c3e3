"""Attention of several heads to the same keys and values, without copies of them.

Models repeat keys and values for each head that reads them, all places of a cache at each token,
and the runtime does so. Heads that read the same are queries more, so they are put side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import openvino as ov
from openvino import opset16 as op

from openvino_backend.nodes import Output, integers, number


@dataclass(frozen=True)
class _Repeated:
    """Keys or values, ``[batch, groups, places, width]``, each group repeated ``times``."""

    source: Output
    groups: int
    times: int


def share_keys_and_values(model: ov.Model) -> None:
    """Attend to keys and values as they are, where a model repeats them by head.

    Args:
        model: changed in place; attention without a mask, or of other forms, stays as it is.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "ScaledDotProductAttention" or node.get_input_size() < 4:
            continue
        if node.get_attributes()["causal"] or not node.input_value(3).get_element_type().is_real():
            continue
        keys, values = _repeated(node.input_value(1)), _repeated(node.input_value(2))
        if keys is None or values is None or keys.times != values.times:
            continue
        made = _attention(node, keys, values)
        if made is not None:
            made.get_node().set_friendly_name(node.get_friendly_name())
            names = node.output(0).get_names()
            node.output(0).replace(made)
            made.set_names(names)


def _attention(node: ov.Node, keys: _Repeated, values: _Repeated) -> Output | None:
    query, mask = node.input_value(0), node.input_value(3)
    if _rank(query.get_partial_shape()) != 4:
        return None
    width = query.get_partial_shape()[3]
    places = keys.source.get_partial_shape()[2]
    wide = values.source.get_partial_shape()[3]
    if _rank(mask.get_partial_shape()) != 4 or not all(
        size.is_static for size in (width, places, wide)
    ):
        return None
    if node.get_input_size() > 4:
        scale = node.input_value(4)
    else:
        scale = number(width.get_length() ** -0.5, query.get_element_type())
    heads = keys.groups * keys.times
    # Rows of a group: those of its first head, then of the next.
    rows = op.reshape(op.multiply(query, scale), _sizes(keys.groups, width.get_length()), True)
    scores = op.matmul(rows, keys.source, False, True)
    scores = op.reshape(scores, _sizes(heads, places.get_length()), True)
    shares = op.softmax(op.add(scores, mask), -1)
    shares = op.reshape(shares, _sizes(keys.groups, places.get_length()), True)
    found = op.matmul(shares, values.source, False, False)
    return op.reshape(found, _sizes(heads, wide.get_length()), True).output(0)


def _sizes(heads: int, last: int) -> Output:
    """Return a shape: the batch as it is, heads, as many rows as there are, what they hold."""
    return integers(0, heads, -1, last)


def _rank(shape: ov.PartialShape) -> int | None:
    return shape.rank.get_length() if shape.rank.is_static else None


def _repeated(found: Output) -> _Repeated | None:
    """Return what ``found`` repeats by head, if it is ``reshape(expand(unsqueeze(…, 2)))``."""
    whole = found.get_node()
    if whole.get_type_name() != "Reshape":
        return None
    wide = whole.input_value(0)
    if wide.get_node().get_type_name() != "Broadcast":
        return None
    given = wide.get_node().input_value(0).get_node()
    if given.get_type_name() not in ("Unsqueeze", "Reshape"):
        return None
    source = given.input_value(0)
    before, between, after, end = (
        output.get_partial_shape() for output in (source, given.output(0), wide, found)
    )
    ranks = [_rank(shape) for shape in (before, between, after, end)]
    if ranks != [4, 5, 5, 4] or not all(
        size.is_static for size in (before[1], before[2], before[3], after[1], after[2], end[1])
    ):
        return None
    groups, times = after[1].get_length(), after[2].get_length()
    same = [before[0], before[1], ov.Dimension(1), before[2], before[3]] == list(between)
    spread = list(between)[3:] == list(after)[3:] == list(end)[2:] and between[0] == after[0]
    grouped = between[1] == after[1] and end[1].get_length() == groups * times
    return _Repeated(source, groups, times) if same and spread and grouped else None
