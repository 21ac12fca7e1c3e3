"""Uses of a palettized weight by operations of a converted model: each form suits some uses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import openvino as ov

Use = Any  # an input of a node


def gathers_rows(use: Use) -> bool:
    """Return whether a weight is the table of an embedding there."""
    node = use.get_node()
    if node.get_type_name() != "Gather" or use.get_index() != 0:
        return False
    axis = node.input_value(2).get_node()
    if axis.get_type_name() != "Constant" or node.get_attributes().get("batch_dims", 0) != 0:
        return False
    return int(axis.get_data().reshape(-1)[0]) == 0


def multiplies(use: Use, varying: set[str]) -> bool:
    """Return whether something that depends on the inputs is multiplied by a weight transposed.

    Only there does the runtime compute in 8 bits. Of a constant multiplied by a weight in 8 bits
    OpenVINO 2026.4 compiles no model.
    """
    node = use.get_node()
    return bool(
        node.get_type_name() == "MatMul"
        and use.get_index() == 1
        and node.get_attributes()["transpose_b"]
        and node.input_value(0).get_node().get_name() in varying
    )


def varying(model: ov.Model, parameters: Iterable[Any]) -> set[str]:
    """Return the names of nodes whose results depend on ``parameters``, these among them."""
    found = {parameter.get_name() for parameter in parameters}
    for node in model.get_ordered_ops():
        if any(value.get_node().get_name() in found for value in node.input_values()):
            found.add(node.get_name())
    return found
