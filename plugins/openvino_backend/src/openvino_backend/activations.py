"""Groups of neighbouring activations that are rounded to 8 bits together, told in the file.

Products by weights of 8-bit integers are computed in 8 bits: the CPU finds one scale for each
group of activations of a row, 32 of them unless it is told otherwise. Larger groups are quicker,
and round more.
"""

from __future__ import annotations

from collections.abc import Iterable

import openvino as ov
from openvino import Type

from palette_core.errors import BackendError

PROPERTY = "DYNAMIC_QUANTIZATION_GROUP_SIZE"


def group_activations(model: ov.Model, size: int | None) -> None:
    """Write the size of groups down, as an option that whoever compiles the file can override.

    Args:
        model: changed in place.
        size: of a group; 0 keeps activations as they are, None writes nothing down.

    Raises:
        BackendError: no weight is of 8-bit integers, or the rows of one are no whole groups, which
            the runtime would not round at all.
    """
    if size is None:
        return
    rows: dict[str, int] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul" and _of_integers(node.input_value(1).get_node()):
            weight = node.input_value(1)
            name = weight.get_node().get_friendly_name().partition("/")[2]
            rows[name] = weight.get_partial_shape()[-1].get_length()
    if not rows:
        raise BackendError(
            f"activation_group_size={size}: no linear layer is computed in 8 bits; palettize one "
            "with a table of integers (lut_qspec: {dtype: int8}), or leave the option out"
        )
    uneven = [f"{name} ({wide})" for name, wide in rows.items() if size and wide % size]
    if uneven:
        whole = [n for n in range(16, min(rows.values()) + 1, 16) if _divides(n, rows.values())]
        raise BackendError(
            f"activation_group_size={size} does not divide the inputs of {', '.join(uneven)}; "
            + (f"of all layers divide {', '.join(map(str, whole))}" if whole else "nothing would")
        )
    model.set_rt_info(str(size), ["runtime_options", PROPERTY])


def _divides(size: int, lengths: Iterable[int]) -> bool:
    return all(length % size == 0 for length in lengths)


def _of_integers(node: ov.Node) -> bool:
    """Return whether a weight is 8-bit integers times a scale, less a zero point perhaps."""
    if node.get_type_name() != "Multiply":
        return False
    wide = node.input_value(0).get_node()
    if wide.get_type_name() == "Subtract":
        wide = wide.input_value(0).get_node()
    kinds = (Type.i8, Type.u8)
    return wide.get_type_name() == "Convert" and wide.input_value(0).get_element_type() in kinds
