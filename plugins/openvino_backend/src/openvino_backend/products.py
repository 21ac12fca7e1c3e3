"""Products of one input by several small weights of 8 bits, as one product by all of their rows.

Whatever its size, a product takes the runtime some 15 microseconds, of 20 to 55 for one row of
activations by a weight of SmolLM2-135M. Queries, keys and values of a layer, and both halves of
its feed-forward part, read the same. Results are the same to the bit.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import openvino as ov
from openvino import Type
from openvino import opset16 as op

from openvino_backend.nodes import Output, integers

_LARGEST = 1 << 21  # values of a weight; of more, the product itself is what takes time


@dataclass(frozen=True)
class Rows:
    """Place where a weight is to be found.

    Attributes:
        layer: name of the node that gives it.
        first: its first row there.
    """

    layer: str
    first: int


@dataclass(frozen=True)
class _Product:
    node: ov.Node
    weight: ov.Node
    values: Output  # [rows, columns], int8 or uint8
    scale: Output  # [rows, 1], float32


def join_products(model: ov.Model) -> dict[str, Rows]:
    """Multiply one input by several weights at once.

    Args:
        model: changed in place; products with a bias, which the runtime adds in one go, stay.

    Returns:
        Where each weight is now, by the name of the node that gave it.
    """
    groups: dict[Any, list[_Product]] = defaultdict(list)
    for node in model.get_ordered_ops():
        product = _product(node)
        if product is not None:
            source = node.input_value(0)
            kind = str(product.values.get_element_type())
            groups[source.get_node().get_name(), source.get_index(), kind].append(product)
    found: dict[str, Rows] = {}
    for products in groups.values():
        if len(products) > 1:
            found |= _joined(products)
    return found


def _joined(products: list[_Product]) -> dict[str, Rows]:
    names = [product.weight.get_friendly_name() for product in products]
    sizes = [_rows(product.values) for product in products]
    values = op.concat([product.values for product in products], 0)
    scale = op.concat([product.scale for product in products], 0)
    weight = op.multiply(op.convert(values, "f32"), scale)
    weight.set_friendly_name(f"{names[0]} and {len(names) - 1} more")
    made = op.matmul(products[0].node.input_value(0), weight, False, True)
    _split(made.output(0), [product.node.output(0) for product in products], sizes)
    layer = weight.get_friendly_name()
    return {name: Rows(layer, sum(sizes[:at])) for at, name in enumerate(names)}


def _split(made: Output, old: list[Output], sizes: list[int]) -> None:
    """Put parts of the last axis of ``made`` in the places of ``old``.

    Where all of those are cut into heads next, the whole is before: one step for each of them less.
    """
    cut = [_heads_of(output) for output in old]
    widths = {each.get_partial_shape()[3].get_length() for each in cut if each is not None}
    if None not in cut and len(widths) == 1:
        (width,) = widths
        made = op.reshape(made, integers(0, 0, sum(sizes) // width, width), True).output(0)
        old, sizes = [each for each in cut if each is not None], [n // width for n in sizes]
        axis = 2
    else:
        axis = made.get_partial_shape().rank.get_length() - 1
    parts = op.variadic_split(made, integers(axis), integers(*sizes))
    for output, part in zip(old, parts.outputs(), strict=True):
        tensor_names = output.get_names()
        output.replace(part)
        part.set_names(tensor_names)


def _heads_of(output: Output) -> Output | None:
    """Return ``[batch, places, heads, width]`` if ``[batch, places, rows]`` is read as that only.

    One batch of a known size, or one number of places, tells that the other is the same.
    """
    users = list(output.get_target_inputs())
    if len(users) != 1 or users[0].get_node().get_type_name() != "Reshape":
        return None
    found = users[0].get_node().output(0)
    flat, cut = output.get_partial_shape(), found.get_partial_shape()
    if not all(shape.rank.is_static for shape in (flat, cut)) or (len(flat), len(cut)) != (3, 4):
        return None
    rows = cut[2].get_length() * cut[3].get_length() if _known(cut[2], cut[3]) else None
    same = any(_known(flat[at]) and flat[at] == cut[at] and flat[at] != 0 for at in (0, 1))
    return found if _known(flat[2]) and flat[2] == rows and same else None


def _known(*sizes: ov.Dimension) -> bool:
    return all(size.is_static for size in sizes)


def _product(node: ov.Node) -> _Product | None:
    """Return a product by a small weight of 8 bits that nothing else uses, without a bias."""
    if node.get_type_name() != "MatMul":
        return None
    facts, weight = node.get_attributes(), node.input_value(1).get_node()
    if facts["transpose_a"] or not facts["transpose_b"] or weight.get_type_name() != "Multiply":
        return None
    values, scale = _scaled(weight.input_value(0)), weight.input_value(1)
    alone = len(weight.output(0).get_target_inputs()) == 1
    users = (use.get_node() for use in node.output(0).get_target_inputs())
    if values is None or not alone or any(_adds_constant(user) for user in users):
        return None
    rows = _rows(values)
    if list(scale.get_partial_shape()) == [1, 1]:
        scale = op.broadcast(scale, integers(rows, 1)).output(0)
    if list(scale.get_partial_shape()) != [rows, 1]:
        return None
    return _Product(node, weight, values, scale)


def _scaled(wide: Output) -> Output | None:
    """Return the small matrix of 8-bit integers that are made floats, if it is one."""
    if wide.get_node().get_type_name() != "Convert" or wide.get_element_type() != Type.f32:
        return None
    values = wide.get_node().input_value(0)
    shape = values.get_partial_shape()
    if values.get_element_type() not in (Type.i8, Type.u8) or not shape.is_static:
        return None
    sizes = [*shape.to_shape()]
    return values if len(sizes) == 2 and sizes[0] * sizes[1] <= _LARGEST else None


def _adds_constant(node: ov.Node) -> bool:
    return node.get_type_name() == "Add" and any(
        value.get_node().get_type_name() == "Constant" for value in node.input_values()
    )


def _rows(values: Output) -> int:
    rows: int = values.get_partial_shape()[0].get_length()
    return rows
