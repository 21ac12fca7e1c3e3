"""Reshapes that leave the batch as it is, where a model was traced with a batch of one.

A trace writes sizes that do not vary as numbers, so that a file for one text says 1 wherever it
means its batch. ``openvino_genai`` puts the tokens of all texts there, and attends to pages.
"""

from __future__ import annotations

import openvino as ov
from openvino import opset16 as op

from openvino_backend.nodes import integers


def leave_batches(model: ov.Model) -> None:
    """Take the first size of an input for that of its reshape, where both are one.

    Args:
        model: changed in place; it computes the same.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Reshape":
            continue
        sizes = _sizes(node)
        if sizes[:1] != [1] or not _begins_with_one(node.input_value(0).get_partial_shape()):
            continue
        made = op.reshape(node.input_value(0), integers(0, *sizes[1:]), True)
        made.set_friendly_name(node.get_friendly_name())
        names = node.output(0).get_names()
        node.output(0).replace(made.output(0))
        made.output(0).set_names(names)


def _sizes(node: ov.Node) -> list[int]:
    """Return the sizes that a reshape names, if they can be named to one that copies zeros."""
    wanted = node.input_value(1).get_node()
    if wanted.get_type_name() != "Constant":
        return []
    sizes = [int(size) for size in wanted.data.reshape(-1)]
    return sizes if node.get_attributes()["special_zero"] or 0 not in sizes else []


def _begins_with_one(shape: ov.PartialShape) -> bool:
    known = shape.rank.is_static and len(shape) > 0 and shape[0].is_static
    return bool(known and shape[0].get_length() == 1)
