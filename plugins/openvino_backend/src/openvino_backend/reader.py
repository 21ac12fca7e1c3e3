"""Decode the palettized weights of a saved model, by numpy, without OpenVINO.

Written against the file format alone: an ``.xml`` of layers and edges, a ``.bin`` of their
constants. Nothing here shares code with the decoding of palette_core or with what writes the
files, so that each can be judged by the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from palette_core.errors import BackendError
from palette_core.storage import read_json

Array = npt.NDArray[Any]

_WHOLE = {
    "f64": np.float64, "f32": np.float32, "f16": np.float16, "i64": np.int64, "i32": np.int32,
    "i16": np.int16, "i8": np.int8, "u8": np.uint8, "boolean": np.bool_,
}  # fmt: skip


def read_weights(path: str | Path) -> dict[str, Array]:
    """Return the dense values of every palettized weight of a saved model, by name.

    A tied weight is stored, and comes, once: under the name of its first owner. Weights in
    bfloat16 come as the float32 that they stand for.

    Raises:
        BackendError: no such files, or not such as the ``openvino`` backend writes.
    """
    try:
        model = _Model(Path(path))
        return {name: model.weight(facts) for name, facts in model.stored.items()}
    except (
        OSError,
        ElementTree.ParseError,
        KeyError,
        ValueError,
        IndexError,
        TypeError,
        AttributeError,
    ) as error:
        raise BackendError(
            f"{path} cannot be read as a model that the openvino backend of palette_core has "
            f"written: {type(error).__name__}: {error}"
        ) from error


class _Model:
    """The layers of a file, and its constants."""

    def __init__(self, path: Path) -> None:
        root = ElementTree.parse(path).getroot()
        self._data = path.with_suffix(".bin").read_bytes()
        layers = root.findall("./layers/layer")
        self._layers = {layer.attrib["id"]: layer for layer in layers}
        self._by_name = {layer.attrib["name"]: layer for layer in layers}
        self._sources = {
            (e.attrib["to-layer"], e.attrib["to-port"]): (
                e.attrib["from-layer"],
                e.attrib["from-port"],
            )
            for e in root.findall("./edges/edge")
        }
        found = root.find("./rt_info/palette_core/weights")
        self.stored: dict[str, Any] = {} if found is None else read_json(found.attrib["value"])

    def weight(self, facts: dict[str, Any]) -> Array:
        """Return what a layer gives; of one that gives rows, all of them in order."""
        name, first = facts["layer"], facts.get("first_row", 0)
        known: dict[str, Array] = {}
        tokens = self._by_name.get(name.removesuffix("/rows") + "/tokens")
        if name.endswith("/rows") and tokens is not None:
            known[tokens.attrib["id"]] = np.arange(facts["shape"][0], dtype=np.int32)
        value = self._value(self._by_name[name].attrib["id"], known)
        return value[first : first + facts["shape"][0]]

    def _value(self, layer_id: str, known: dict[str, Array]) -> Array:
        if layer_id in known:
            return known[layer_id]
        layer = self._layers[layer_id]
        kind = layer.attrib["type"]
        data = layer.find("data")
        facts = {} if data is None else dict(data.attrib)
        if kind == "Const":
            return self._const(facts)
        ports = [] if (given := layer.find("input")) is None else given.findall("port")
        values = [self._value(self._sources[layer_id, p.attrib["id"]][0], known) for p in ports]
        result = _OPERATIONS[kind](facts, *values)
        precision = layer.findall("./output/port")[0].attrib.get("precision", "")
        known[layer_id] = _rounded(result) if precision == "BF16" else result
        return known[layer_id]

    def _const(self, facts: dict[str, str]) -> Array:
        shape = [int(size) for size in facts["shape"].split(",") if size.strip()]
        start, size = int(facts["offset"]), int(facts["size"])
        if start + size > len(self._data):
            raise ValueError(f"the .bin ends before {start + size} bytes")
        content = self._data[start : start + size]
        return _decoded(content, facts["element_type"], math.prod(shape)).reshape(shape)


def _decoded(content: bytes, kind: str, count: int) -> Array:
    raw = np.frombuffer(content, np.uint8)
    if kind in _WHOLE:
        return np.frombuffer(content, _WHOLE[kind])
    if kind == "bf16":
        return (np.frombuffer(content, np.uint16).astype(np.uint32) << 16).view(np.float32)
    if kind in ("f8e4m3", "f8e5m2"):
        return _eight_bit_floats(*((4, 7) if kind == "f8e4m3" else (5, 15)))[raw]
    return _UNPACKERS[kind](raw)[:count]


def _eight_bit_floats(exponent_bits: int, bias: int) -> Array:
    """Return what the 256 bytes stand for; NaN and infinities as finite values, never written."""
    byte, fraction_bits = np.arange(256), 7 - exponent_bits
    fraction = (byte & ((1 << fraction_bits) - 1)) / (1 << fraction_bits)
    exponent = (byte >> fraction_bits) & ((1 << exponent_bits) - 1)
    value = np.where(
        exponent == 0,
        fraction * 2.0 ** (1 - bias),
        (1 + fraction) * 2.0 ** (exponent - bias),
    )
    return np.where(byte & 128, -value, value).astype(np.float32)


def _u3(raw: Array) -> Array:
    """Three bytes: 2 low bits of values 0 to 3, of 4 to 7, then the high bits; first on top."""
    low_a, low_b, high = raw.reshape(-1, 3).T
    low = [(byte >> shift) & 3 for byte in (low_a, low_b) for shift in (6, 4, 2, 0)]
    return np.stack([part | ((high >> (7 - i)) & 1) << 2 for i, part in enumerate(low)], 1).ravel()


def _u6(raw: Array) -> Array:
    """Three bytes: 4 low bits of values 0 and 1, of 2 and 3, then 2 high bits of each."""
    low_a, low_b, high = raw.reshape(-1, 3).T
    low = [(byte >> shift) & 15 for byte in (low_a, low_b) for shift in (4, 0)]
    return np.stack(
        [part | ((high >> (6 - 2 * i)) & 3) << 4 for i, part in enumerate(low)], 1
    ).ravel()


def _within_bytes(n_bits: int) -> Callable[[Array], Array]:
    """Return a reader of 2 or 4 bits, low ones first."""
    shifts = np.arange(0, 8, n_bits)
    return lambda raw: ((raw[:, None] >> shifts) & ((1 << n_bits) - 1)).astype(np.uint8).ravel()


_UNPACKERS: dict[str, Callable[[Array], Array]] = {
    "u1": np.unpackbits,
    "u2": _within_bytes(2),
    "u3": _u3,
    "u4": _within_bytes(4),
    "u6": _u6,
}


# --- operations -----------------------------------------------------------------------------------


def _rounded(values: Array) -> Array:
    """Return float32 rounded to bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


def _convert(facts: dict[str, str], value: Array) -> Array:
    kind = facts["destination_type"]
    return value.astype(np.float32 if kind == "bf16" else _WHOLE[kind])


def _gather(facts: dict[str, str], table: Array, at: Array, axis: Array) -> Array:
    where, together = int(axis.reshape(-1)[0]), int(facts.get("batch_dims", "0"))
    if together == 0:
        return np.take(table, at, where)
    if together != 1 or where != 1:
        raise ValueError(f"Gather on axis {where} with {together} batch axes is not ours")
    return np.stack([part[index] for part, index in zip(table, at, strict=True)])


def _cum_sum(facts: dict[str, str], value: Array, axis: Array) -> Array:
    before = value if facts.get("exclusive") == "true" else 0
    return np.cumsum(value, int(axis.reshape(-1)[0]), dtype=value.dtype) - before


def _concat(facts: dict[str, str], *parts: Array) -> Array:
    return np.concatenate(parts, int(facts["axis"]))


_OPERATIONS: dict[str, Callable[..., Array]] = {
    "Convert": _convert,
    "Gather": _gather,
    "Concat": _concat,
    "Broadcast": lambda _, value, shape: np.broadcast_to(value, shape.tolist()),
    "ShapeOf": lambda _, value: np.array(value.shape, np.int64),
    "Reshape": lambda _, value, shape: value.reshape(shape.tolist()),
    "Transpose": lambda _, value, order: value.transpose(order.tolist()),
    "Squeeze": lambda _, value, axis: np.squeeze(value, tuple(axis.reshape(-1).tolist())),
    "Unsqueeze": lambda _, value, axis: np.expand_dims(value, tuple(axis.reshape(-1).tolist())),
    "CumSum": _cum_sum,
    "Minimum": lambda _, a, b: np.minimum(a, b),
    "Select": lambda _, where, a, b: np.where(where, a, b),
    "Add": lambda _, a, b: a + b,
    "Subtract": lambda _, a, b: a - b,
    "Multiply": lambda _, a, b: a * b,
    "Divide": lambda _, a, b: a // b,
    "FloorMod": lambda _, a, b: a % b,
}
