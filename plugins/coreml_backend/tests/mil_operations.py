"""Operations of ML programs on elements, axes, shapes and indices, in numpy and torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from coremltools.converters.mil.mil import types
from torch import Tensor

Array = npt.NDArray[Any]


class Arguments(dict[str, Any]):
    """The inputs of an operation by name; left-out ones are None."""

    def __missing__(self, name: str) -> None:
        return None

    def tensor(self, name: str) -> Tensor:
        """Return an input as a tensor."""
        return torch.from_numpy(np.ascontiguousarray(self[name]).reshape(np.shape(self[name])))

    def maybe(self, name: str) -> Tensor | None:
        """Return an input as a tensor, or None."""
        return None if self[name] is None else self.tensor(name)

    def number(self, name: str, default: float = 0.0) -> float:
        """Return a number."""
        return default if self[name] is None else float(self[name])

    def integer(self, name: str, default: int = 0) -> int:
        """Return an integer."""
        return default if self[name] is None else int(self[name])

    def integers(self, name: str) -> list[int] | None:
        """Return a list of integers, or None."""
        return None if self[name] is None else [int(i) for i in np.asarray(self[name]).reshape(-1)]

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a flag."""
        return default if self[name] is None else bool(self[name])


Operation = Callable[[Arguments], Any]
TABLE: dict[str, Operation] = {}


def operation(*names: str) -> Callable[[Operation], Operation]:
    """Enter a function under the names of operations."""

    def enter(function: Operation) -> Operation:
        TABLE.update(dict.fromkeys(names, function))
        return function

    return enter


def dtype_name(var: Any) -> str:
    """Return the name of a variable's element type as ML programs write it."""
    return str(types.builtin_to_string(var.dtype))


# --- element by element ---------------------------------------------------------------------------


def _erf(x: Array) -> Array:
    return torch.erf(torch.from_numpy(np.asarray(x))).numpy()


def _round_half_to_even(x: Array) -> Array:
    return np.round(x)


_UNARY: dict[str, Callable[[Array], Array]] = {
    "abs": np.abs,
    "acos": np.arccos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "ceil": np.ceil,
    "cos": np.cos,
    "cosh": np.cosh,
    "erf": _erf,
    "exp": np.exp,
    "exp2": np.exp2,
    "floor": np.floor,
    "identity": np.asarray,
    "logical_not": np.logical_not,
    "round": _round_half_to_even,
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
}
_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "equal": np.equal,
    "floor_div": np.floor_divide,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "mod": np.mod,
    "mul": np.multiply,
    "not_equal": np.not_equal,
    "pow": np.power,
    "sub": np.subtract,
}
for _name, _function in _UNARY.items():
    TABLE[_name] = lambda a, function=_function: function(np.asarray(a["x"]))
for _name, _pair in _BINARY.items():
    TABLE[_name] = lambda a, function=_pair: function(a["x"], a["y"])


@operation("real_div")
def _(a: Arguments) -> Array:
    quotient = np.true_divide(a["x"], a["y"])
    # Of integers it is an integer, cut.
    whole = np.asarray(a["x"]).dtype.kind == "i" and np.asarray(a["y"]).dtype.kind == "i"
    return np.trunc(quotient) if whole else quotient


@operation("log")
def _(a: Arguments) -> Array:
    return np.log(a["x"] + np.float32(a.number("epsilon", 1e-45)))


@operation("rsqrt")
def _(a: Arguments) -> Array:
    return 1 / np.sqrt(a["x"] + np.float32(a.number("epsilon", 1e-12)))


@operation("inverse")
def _(a: Arguments) -> Array:
    return 1 / (a["x"] + np.float32(a.number("epsilon", 1e-4)))


@operation("clip")
def _(a: Arguments) -> Array:
    return np.clip(a["x"], a["alpha"], a["beta"])


@operation("threshold")
def _(a: Arguments) -> Array:
    return np.maximum(a["x"], a["alpha"])


@operation("cast")
def _(a: Arguments) -> Array:
    names = {"fp16": np.float16, "fp32": np.float32, "bool": np.bool_}
    name = str(a["dtype"])
    return np.asarray(a["x"]).astype(names[name] if name in names else np.dtype(name))


@operation("quantize")
def _(a: Arguments) -> Array:
    limits = np.iinfo(str(a["output_dtype"]))
    scaled = np.rint(np.asarray(a["input"], np.float32) / np.asarray(a["scale"], np.float32))
    shifted = scaled + (0 if a["zero_point"] is None else np.asarray(a["zero_point"], np.float32))
    return np.clip(shifted, limits.min, limits.max).astype(limits.dtype)


@operation("dequantize")
def _(a: Arguments) -> Array:
    zero = 0 if a["zero_point"] is None else np.asarray(a["zero_point"], np.float32)
    scaled = (np.asarray(a["input"], np.float32) - zero) * np.asarray(a["scale"], np.float32)
    return np.asarray(scaled.astype(np.asarray(a["scale"]).dtype))


@operation("select")
def _(a: Arguments) -> Array:
    return np.where(a["cond"], a["a"], a["b"])


_ACTIVATIONS: dict[str, Callable[[Tensor, Arguments], Tensor]] = {
    "clamped_relu": lambda x, a: F.leaky_relu(x, a.number("alpha")).clamp(max=a.number("beta")),
    "elu": lambda x, a: F.elu(x, a.number("alpha", 1.0)),
    "gelu": lambda x, a: F.gelu(x, approximate="none" if a["mode"] in (None, "EXACT") else "tanh"),
    "leaky_relu": lambda x, a: F.leaky_relu(x, a.number("alpha", 0.01)),
    "linear_activation": lambda x, a: x * a.number("alpha", 1.0) + a.number("beta", 0.0),
    "prelu": lambda x, a: F.prelu(x, a.tensor("alpha")),
    "relu": lambda x, a: F.relu(x),
    "relu6": lambda x, a: F.relu6(x),
    "scaled_tanh": lambda x, a: a.number("alpha", 1.0) * torch.tanh(x * a.number("beta", 1.0)),
    "sigmoid": lambda x, a: torch.sigmoid(x),
    "sigmoid_hard": lambda x, a: (x * a.number("alpha", 0.2) + a.number("beta", 0.5)).clamp(0, 1),
    "silu": lambda x, a: F.silu(x),
    "softmax": lambda x, a: x.softmax(a.integer("axis", -1)),
    "softplus": lambda x, a: F.softplus(x),
    "softplus_parametric": lambda x, a: (
        _channels(a, "alpha", x) * F.softplus(x * _channels(a, "beta", x))
    ),
    "softsign": lambda x, a: F.softsign(x),
    "thresholded_relu": lambda x, a: F.threshold(x, a.number("alpha", 1.0), 0.0),
}
for _name, _activation in _ACTIVATIONS.items():
    TABLE[_name] = lambda a, function=_activation: function(a.tensor("x"), a).numpy()


def _channels(a: Arguments, name: str, x: Tensor) -> Tensor:
    return a.tensor(name).reshape(1, -1, *[1] * (x.dim() - 2))


# --- reductions and order -------------------------------------------------------------------------

_REDUCTIONS: dict[str, Callable[..., Array]] = {
    "reduce_l1_norm": lambda x, **k: np.abs(x).sum(**k),
    "reduce_l2_norm": lambda x, **k: np.sqrt(np.square(x).sum(**k)),
    "reduce_log_sum": lambda x, **k: np.log(x.sum(**k)),
    "reduce_log_sum_exp": lambda x, **k: np.log(np.exp(x.astype(np.float64)).sum(**k)),
    "reduce_max": lambda x, **k: x.max(**k),
    "reduce_mean": lambda x, **k: x.mean(**k),
    "reduce_min": lambda x, **k: x.min(**k),
    "reduce_prod": lambda x, **k: x.prod(**k),
    "reduce_sum": lambda x, **k: x.sum(**k),
    "reduce_sum_square": lambda x, **k: np.square(x).sum(**k),
}
for _name, _reduction in _REDUCTIONS.items():

    def _reduce(a: Arguments, function: Callable[..., Array] = _reduction) -> Array:
        axes = a.integers("axes")
        kept = a.flag("keep_dims")
        return function(
            np.asarray(a["x"]), axis=None if axes is None else tuple(axes), keepdims=kept
        )

    TABLE[_name] = _reduce


@operation("reduce_argmax")
def _(a: Arguments) -> Array:
    return np.argmax(a["x"], a.integer("axis", -1), keepdims=a.flag("keep_dims"))


@operation("reduce_argmin")
def _(a: Arguments) -> Array:
    return np.argmin(a["x"], a.integer("axis", -1), keepdims=a.flag("keep_dims"))


@operation("argsort")
def _(a: Arguments) -> Array:
    return _order(a).numpy()


def _order(a: Arguments) -> Tensor:
    descending = not a.flag("ascending")
    return torch.argsort(
        a.tensor("x"), dim=a.integer("axis", -1), descending=descending, stable=True
    )


@operation("topk")
def _(a: Arguments) -> Any:
    axis = a.integer("axis", -1)
    order = _order(a).narrow(axis, 0, a.integer("k", 1))
    values = a.tensor("x").gather(axis, order).numpy()
    return (
        values
        if a["return_indices"] is not None and not a["return_indices"]
        else [
            values,
            order.numpy(),
        ]
    )


@operation("cumsum")
def _(a: Arguments) -> Array:
    axis, x = a.integer("axis"), np.asarray(a["x"])
    x = np.flip(x, axis) if a.flag("reverse") else x
    total = np.cumsum(x, axis)
    total = total - x if a.flag("exclusive") else total
    return np.flip(total, axis) if a.flag("reverse") else total


@operation("non_zero")
def _(a: Arguments) -> Array:
    return np.argwhere(np.asarray(a["x"]))


# --- shapes ---------------------------------------------------------------------------------------


@operation("reshape")
def _(a: Arguments) -> Array:
    x, sizes = np.asarray(a["x"]), a.integers("shape") or []
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(sizes)])


@operation("reshape_like")
def _(a: Arguments) -> Array:
    sizes: list[int] = []
    ends = zip(a["ref_tensors"], a["begins"], a["ends"], a["end_masks"], strict=True)
    for reference, begin, end, mask in ends:
        sizes += np.asarray(reference).shape[int(begin) : None if mask else int(end)]
    return np.asarray(a["x"]).reshape(sizes)


@operation("expand_dims")
def _(a: Arguments) -> Array:
    axes = a.integers("axes") or []
    return np.expand_dims(np.asarray(a["x"]), tuple(axes))


@operation("squeeze")
def _(a: Arguments) -> Array:
    axes = a.integers("axes")
    return np.squeeze(a["x"], None if axes is None else tuple(axes))


@operation("transpose")
def _(a: Arguments) -> Array:
    return np.transpose(a["x"], a.integers("perm"))


@operation("concat")
def _(a: Arguments) -> Array:
    assert not a.flag("interleave")
    return np.concatenate([np.atleast_1d(v) for v in a["values"]], a.integer("axis"))


@operation("stack")
def _(a: Arguments) -> Array:
    return np.stack(a["values"], a.integer("axis"))


@operation("split")
def _(a: Arguments) -> list[Array]:
    axis, sizes = a.integer("axis"), a.integers("split_sizes")
    if sizes is None:
        return np.split(a["x"], a.integer("num_splits"), axis)
    return np.split(a["x"], np.cumsum(sizes)[:-1], axis)


@operation("slice_by_index")
def _(a: Arguments) -> Array:
    x = np.asarray(a["x"])
    begin, end = a.integers("begin") or [], a.integers("end") or []
    stride = a.integers("stride") or [1] * x.ndim
    masks = [
        [False] * x.ndim if a[name] is None else [bool(m) for m in a[name]]
        for name in ("begin_mask", "end_mask", "squeeze_mask")
    ]
    cut: list[Any] = []
    for i in range(x.ndim):
        if masks[2][i]:
            cut.append(begin[i])
        else:
            low = None if masks[0][i] else begin[i]
            cut.append(slice(low, None if masks[1][i] else end[i], stride[i]))
    return x[tuple(cut)]


@operation("slice_by_size")
def _(a: Arguments) -> Array:
    pairs = zip(a.integers("begin") or [], a.integers("size") or [], strict=True)
    return a["x"][tuple(slice(at, None if size == -1 else at + size) for at, size in pairs)]


@operation("slice_update")
def _(a: Arguments) -> Array:
    places = np.arange(np.asarray(a["x"]).size).reshape(np.shape(a["x"]))
    changed = TABLE["slice_by_index"](Arguments({**a, "x": places}))
    x = np.array(a["x"])
    x.reshape(-1)[changed] = np.asarray(a["update"]).reshape(changed.shape)
    return x


@operation("tile")
def _(a: Arguments) -> Array:
    return np.tile(a["x"], a.integers("reps") or [])


@operation("reverse")
def _(a: Arguments) -> Array:
    axes = a.integers("axes")
    return np.flip(a["x"], None if axes is None else tuple(axes)).copy()


@operation("pad")
def _(a: Arguments) -> Array:
    x, pad = np.asarray(a["x"]), a.integers("pad") or []
    pairs = [(0, 0)] * (x.ndim - len(pad) // 2) + list(zip(pad[::2], pad[1::2], strict=True))
    mode = str(a["mode"] or "constant")
    if mode == "constant":
        return np.pad(x, pairs, constant_values=a.number("constant_val"))
    return np.pad(x, pairs, {"reflect": "reflect", "replicate": "edge"}[mode])  # type: ignore[call-overload,no-any-return]


@operation("sliding_windows")
def _(a: Arguments) -> Array:
    axis = a.integer("axis") % np.ndim(a["x"])
    windows = a.tensor("x").unfold(axis, a.integer("size"), a.integer("stride", 1))
    return windows.movedim(-1, axis + 1).numpy()


@operation("shape")
def _(a: Arguments) -> Array:
    return np.array(np.shape(a["x"]), np.int32)


@operation("flatten2d")
def _(a: Arguments) -> Array:
    x, axis = np.asarray(a["x"]), a.integer("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operation("crop")
def _(a: Arguments) -> Array:
    (top, bottom), (left, right) = a.integers("crop_height") or [], a.integers("crop_width") or []
    height, width = np.shape(a["x"])[-2:]
    return a["x"][..., top : height - bottom, left : width - right]


@operation("band_part")
def _(a: Arguments) -> Array:
    lower, upper = a.integer("lower", -1), a.integer("upper", -1)
    row, column = np.indices(np.shape(a["x"])[-2:])
    kept = ((lower < 0) | (row - column <= lower)) & ((upper < 0) | (column - row <= upper))
    return np.where(kept, a["x"], np.zeros_like(a["x"]))


@operation("fill")
def _(a: Arguments) -> Array:
    return np.full(a.integers("shape") or [], 0.0 if a["value"] is None else a["value"])


@operation("fill_like")
def _(a: Arguments) -> Array:
    return np.full(np.shape(a["ref_tensor"]), 0.0 if a["value"] is None else a["value"])


@operation("range_1d")
def _(a: Arguments) -> Array:
    return np.arange(a["start"], a["end"], a["step"])


@operation("one_hot")
def _(a: Arguments) -> Array:
    axis, size = a.integer("axis", -1), a.integer("one_hot_vector_size", 1)
    hot = np.asarray(a["indices"])[..., None] == np.arange(size)
    on = 1 if a["on_value"] is None else a["on_value"]
    return np.moveaxis(np.where(hot, on, 0 if a["off_value"] is None else a["off_value"]), -1, axis)


# --- indices --------------------------------------------------------------------------------------


@operation("gather")
def _(a: Arguments) -> Array:
    axis, batch = a.integer("axis"), a.integer("batch_dims")
    indices = np.asarray(a["indices"]).astype(np.int64)
    if batch == 0:
        return np.take(a["x"], indices, axis)
    lead = np.shape(a["x"])[:batch]
    flat = np.reshape(a["x"], (-1, *np.shape(a["x"])[batch:]))
    parts = [
        np.take(x, i, axis - batch)
        for x, i in zip(flat, indices.reshape(-1, *indices.shape[batch:]), strict=True)
    ]
    return np.stack(parts).reshape(*lead, *parts[0].shape)


@operation("gather_along_axis")
def _(a: Arguments) -> Array:
    return np.take_along_axis(a["x"], np.asarray(a["indices"]).astype(np.int64), a.integer("axis"))


@operation("gather_nd")
def _(a: Arguments) -> Array:
    indices, batch = np.asarray(a["indices"]).astype(np.int64), a.integer("batch_dims")
    if batch == 0:
        return a["x"][tuple(np.moveaxis(indices, -1, 0))]
    lead = np.shape(a["x"])[:batch]
    flat = np.reshape(a["x"], (-1, *np.shape(a["x"])[batch:]))
    rows = indices.reshape(-1, *indices.shape[batch:])
    parts = [x[tuple(np.moveaxis(i, -1, 0))] for x, i in zip(flat, rows, strict=True)]
    return np.stack(parts).reshape(*lead, *parts[0].shape)


def _scatter(data: Array, at: Any, updates: Array, mode: str) -> Array:
    if mode == "update":
        data[at] = updates
        return data
    meant: dict[str, Any] = {
        "add": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "div": np.divide,
        "max": np.maximum,
        "min": np.minimum,
    }
    meant[mode].at(data, at, updates)
    return data


@operation("scatter")
def _(a: Arguments) -> Array:
    data, axis = np.array(a["data"]), a.integer("axis")
    at = (slice(None),) * (axis % data.ndim) + (np.asarray(a["indices"]),)
    return _scatter(data, at, a["updates"], str(a["mode"] or "add"))


@operation("scatter_along_axis")
def _(a: Arguments) -> Array:
    data, indices = np.array(a["data"]), np.asarray(a["indices"])
    at = list(np.indices(indices.shape))
    at[a.integer("axis")] = indices
    return _scatter(data, tuple(at), a["updates"], str(a["mode"] or "add"))


@operation("scatter_nd")
def _(a: Arguments) -> Array:
    at = tuple(np.moveaxis(np.asarray(a["indices"]), -1, 0))
    return _scatter(np.array(a["data"]), at, a["updates"], str(a["mode"] or "add"))
