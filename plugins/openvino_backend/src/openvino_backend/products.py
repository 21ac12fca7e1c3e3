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
    parts = op.variadic_split(made, integers(-1), integers(*sizes))
    for product, part in zip(products, parts.outputs(), strict=True):
        old = product.node.output(0)
        tensor_names = old.get_names()
        old.replace(part)
        part.set_names(tensor_names)
    layer = weight.get_friendly_name()
    return {name: Rows(layer, sum(sizes[:at])) for at, name in enumerate(names)}


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
