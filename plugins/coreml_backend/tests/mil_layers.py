"""Operations of ML programs that stand for layers, and the ones that decode weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from coremltools.optimize._utils import restore_elements_from_packed_bits
from mil_operations import Arguments, Array
from torch import Tensor

TABLE: dict[str, Callable[[Arguments], Any]] = {}


def operation(*names: str) -> Callable[[Callable[[Arguments], Any]], Callable[[Arguments], Any]]:
    """Enter a function under the names of operations."""

    def enter(function: Callable[[Arguments], Any]) -> Callable[[Arguments], Any]:
        TABLE.update(dict.fromkeys(names, function))
        return function

    return enter


# --- weights --------------------------------------------------------------------------------------


@operation("constexpr_lut_to_dense")
def _(a: Arguments) -> Array:
    table = np.asarray(a["lut"])
    if a["shape"] is not None:  # before iOS 18: packed, one table
        shape = [int(size) for size in a["shape"]]
        n_bits = int(math.log2(len(table)))
        return table[
            restore_elements_from_packed_bits(a["indices"], n_bits, math.prod(shape))
        ].reshape(shape)
    indices = np.asarray(a["indices"]).astype(np.int64)
    cells = zip(indices.shape, table.shape[:-2], strict=True)
    block = np.ix_(*[np.arange(size) // (size // cell) for size, cell in cells])
    entries = table[(*block, indices)]
    if table.shape[-1] == 1:
        return entries[..., 0]
    axis = a.integer("vector_axis")
    sizes = list(indices.shape)
    sizes[axis] *= table.shape[-1]
    return np.moveaxis(entries, -1, axis + 1).reshape(sizes)


@operation("constexpr_lut_to_sparse")
def _(a: Arguments) -> list[Array]:
    """As documented: the table of the place that a nonzero comes from, in row-major order."""
    mask, table = np.asarray(a["indices_mask"]) != 0, np.asarray(a["lut"])
    assert table.shape[-1] == 1
    cells = zip(mask.shape, table.shape[:-2], strict=True)
    blocks = np.ix_(*[np.arange(size) // (size // cell) for size, cell in cells])
    of_place = np.broadcast_arrays(*blocks)
    codes = np.asarray(a["indices_nonzero_data"]).astype(np.int64)
    return [mask, table[(*[block[mask] for block in of_place], codes, 0)]]


@operation("constexpr_sparse_to_dense")
def _(a: Arguments) -> Array:
    mask, values = np.asarray(a["mask"]) != 0, np.asarray(a["nonzero_data"])
    dense = np.zeros(mask.shape, values.dtype)
    dense[mask] = values
    return dense


def _spread(part: Array, shape: tuple[int, ...]) -> Array:
    for axis, (cells, size) in enumerate(zip(part.shape, shape, strict=True)):
        part = np.repeat(part, size // cells, axis)
    return part


@operation("constexpr_blockwise_shift_scale")
def _(a: Arguments) -> Array:
    data, scale = np.asarray(a["data"]), np.asarray(a["scale"])
    offset = 0 if a["offset"] is None else _spread(np.asarray(a["offset"]), data.shape)
    shifted = data.astype(np.float32) - np.asarray(offset, np.float32)
    return (shifted * _spread(scale, data.shape).astype(np.float32)).astype(scale.dtype)


# --- products -------------------------------------------------------------------------------------


@operation("linear")
def _(a: Arguments) -> Array:
    return F.linear(a.tensor("x"), a.tensor("weight"), a.maybe("bias")).numpy()


@operation("matmul")
def _(a: Arguments) -> Array:
    x, y = a.tensor("x"), a.tensor("y")
    x = x.mT if a.flag("transpose_x") else x
    return (x @ (y.mT if a.flag("transpose_y") else y)).numpy()


@operation("einsum")
def _(a: Arguments) -> Array:
    return np.einsum(str(a["equation"]), *a["values"])


@operation("scaled_dot_product_attention")
def _(a: Arguments) -> Array:
    """As documented: softmax(q kᵀ / √d + mask) v, without torch's care for empty rows."""
    query, key, value = a.tensor("query"), a.tensor("key"), a.tensor("value")
    scores = query @ key.mT / query.shape[-1] ** 0.5
    mask = a.maybe("attn_mask")
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, float("-inf")) if mask.dtype is torch.bool else scores + mask
        )
    return (scores.softmax(-1) @ value).numpy()


def _sides(a: Arguments, kernel: list[int], strides: list[int], x: Tensor) -> list[int]:
    """Return the padding before and after each spatial axis."""
    kind, n = str(a["pad_type"] or "valid"), len(kernel)
    if kind == "custom":
        return a.integers("pad") or [0] * 2 * n
    if kind == "valid":
        return [0] * 2 * n
    sides: list[int] = []
    for size, k, s in zip(x.shape[2:], kernel, strides, strict=True):
        total = max(0, (math.ceil(size / s) - 1) * s + k - size)
        low, high = total // 2, total - total // 2
        sides += [high, low] if kind == "same_lower" else [low, high]
    return sides


def _flat(sides: list[int]) -> list[int]:
    """Return padding as ``F.pad`` wants it: the last axis first."""
    return [p for i in range(len(sides) - 2, -1, -2) for p in (sides[i], sides[i + 1])]


@operation("conv")
def _(a: Arguments) -> Array:
    x, weight = a.tensor("x"), a.tensor("weight")
    n = weight.dim() - 2
    strides, dilations = a.integers("strides") or [1] * n, a.integers("dilations") or [1] * n
    spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    x = F.pad(x, _flat(_sides(a, spans, strides, x)))
    convolve = getattr(F, f"conv{n}d")
    out: Tensor = convolve(
        x, weight, a.maybe("bias"), strides, 0, dilations, a.integer("groups", 1)
    )
    return out.numpy()


@operation("conv_transpose")
def _(a: Arguments) -> Array:
    x, weight, bias = a.tensor("x"), a.tensor("weight"), a.maybe("bias")
    n = weight.dim() - 2
    strides, dilations = a.integers("strides") or [1] * n, a.integers("dilations") or [1] * n
    assert str(a["pad_type"] or "valid") in ("valid", "custom")
    sides = a.integers("pad") if a["pad_type"] == "custom" else None
    sides = sides or [0] * 2 * n
    convolve = getattr(F, f"conv_transpose{n}d")
    full: Tensor = convolve(x, weight, None, strides, 0, 0, a.integer("groups", 1), dilations)
    given = a.integers("output_shape")
    for axis in range(n):
        before, after = sides[2 * axis], sides[2 * axis + 1]
        size = full.shape[axis + 2] - before - after if given is None else given[axis + 2]
        missing = before + size - full.shape[axis + 2]
        if missing > 0:
            pad = [0] * 2 * (n - axis)
            pad[-1] = missing
            full = F.pad(full, pad)
        full = full.narrow(axis + 2, before, size)
    if bias is not None:
        full = full + bias.reshape(1, -1, *[1] * n)
    return full.numpy()


# --- pooling --------------------------------------------------------------------------------------


def _windows(a: Arguments, filler: float, x: Tensor) -> Tensor:
    """Return ``[batch, channels, *out, *kernel]``."""
    kernel = a.integers("kernel_sizes") or []
    strides = a.integers("strides") or [1] * len(kernel)
    sides = _sides(a, kernel, strides, x)
    if a.flag("ceil_mode"):
        for axis, (k, s) in enumerate(zip(kernel, strides, strict=True)):
            before, after = sides[2 * axis], sides[2 * axis + 1]
            size = x.shape[axis + 2] + before + after
            count = math.ceil((size - k) / s) + 1
            if (count - 1) * s >= x.shape[axis + 2] + before:
                count -= 1
            sides[2 * axis + 1] = after + max(0, (count - 1) * s + k - size)
    windows = F.pad(x, _flat(sides), value=filler)
    for axis, (k, s) in enumerate(zip(kernel, strides, strict=True)):
        windows = windows.unfold(axis + 2, k, s)
    return windows


@operation("max_pool")
def _(a: Arguments) -> Array:
    windows = _windows(a, float("-inf"), a.tensor("x"))
    return windows.flatten(windows.dim() // 2 + 1).amax(-1).numpy()


@operation("avg_pool")
def _(a: Arguments) -> Array:
    x = a.tensor("x")
    windows = _windows(a, 0.0, x)
    spread = windows.dim() // 2 + 1
    total = windows.flatten(spread).sum(-1)
    if a.flag("exclude_padding_from_average"):
        return (total / _windows(a, 0.0, torch.ones_like(x)).flatten(spread).sum(-1)).numpy()
    return (total / math.prod(windows.shape[spread:])).numpy()


# --- norms ----------------------------------------------------------------------------------------


@operation("layer_norm")
def _(a: Arguments) -> Array:
    x, axes = a.tensor("x"), a.integers("axes") or [-1]
    mean = x.mean(axes, keepdim=True)
    spread = (x - mean).square().mean(axes, keepdim=True)
    out = (x - mean) / torch.sqrt(spread + a.number("epsilon", 1e-5))
    if a["gamma"] is not None:
        out = out * a.tensor("gamma")
    return (out if a["beta"] is None else out + a.tensor("beta")).numpy()


@operation("batch_norm")
def _(a: Arguments) -> Array:
    return F.batch_norm(
        a.tensor("x"),
        a.tensor("mean"),
        a.tensor("variance"),
        a.maybe("gamma"),
        a.maybe("beta"),
        eps=a.number("epsilon", 1e-5),
    ).numpy()


@operation("instance_norm")
def _(a: Arguments) -> Array:
    eps = a.number("epsilon", 1e-5)
    return F.instance_norm(
        a.tensor("x"), weight=a.maybe("gamma"), bias=a.maybe("beta"), eps=eps
    ).numpy()


@operation("l2_norm")
def _(a: Arguments) -> Array:
    x = a.tensor("x")
    axes = [-3, -2, -1][-max(1, x.dim() - 1) :]
    return (x / torch.sqrt(x.square().sum(axes, keepdim=True) + a.number("epsilon", 1e-6))).numpy()


@operation("local_response_norm")
def _(a: Arguments) -> Array:
    return F.local_response_norm(
        a.tensor("x"),
        a.integer("size"),
        a.number("alpha", 1e-4),
        a.number("beta", 0.75),
        a.number("k", 1.0),
    ).numpy()


# --- images ---------------------------------------------------------------------------------------


def _grid_points(size: int, out: int, mode: str) -> Tensor:
    at = torch.arange(out, dtype=torch.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if out == 1:
            return torch.tensor([0.0 if mode.startswith("STRICT") else (size - 1) / 2])
        points = at * (size - 1) / (out - 1)
    elif mode == "DEFAULT":
        points = at * (size - size / out) / max(1, out - 1)
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / out
        points = 0.5 * delta + at * delta
    else:
        points = at * size / out + 0.5 * size / out - 0.5
    return points.clamp(0, size - 1)


def _between(x: Tensor, axis: int, points: Tensor) -> Tensor:
    low = points.floor().long().clamp(0, x.shape[axis] - 1)
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    shape = [1] * x.dim()
    shape[axis] = -1
    part = (points - low).reshape(shape).to(x.dtype)
    return x.index_select(axis, low) * (1 - part) + x.index_select(axis, high) * part


def _resized(x: Tensor, height: int, width: int, mode: str) -> Array:
    x = _between(x, x.dim() - 2, _grid_points(x.shape[-2], height, mode))
    return _between(x, x.dim() - 1, _grid_points(x.shape[-1], width, mode)).numpy()


@operation("resize_bilinear")
def _(a: Arguments) -> Array:
    height, width = a.integer("target_size_height", 1), a.integer("target_size_width", 1)
    return _resized(a.tensor("x"), height, width, str(a["sampling_mode"] or "DEFAULT"))


@operation("upsample_bilinear")
def _(a: Arguments) -> Array:
    x = a.tensor("x")
    height = math.floor(x.shape[-2] * a.number("scale_factor_height", 1.0))
    width = math.floor(x.shape[-1] * a.number("scale_factor_width", 1.0))
    if a.flag("align_corners", True):
        mode = "ALIGN_CORNERS"
    else:
        mode = "UNALIGN_CORNERS" if a.flag("half_pixel_centers", True) else "DEFAULT"
    return _resized(x, height, width, mode)


@operation("upsample_nearest_neighbor")
def _(a: Arguments) -> Array:
    x = a.tensor("x")
    for axis, name in ((-2, "scale_factor_height"), (-1, "scale_factor_width")):
        scale = a.number(name, 1.0)
        out = math.floor(x.shape[axis] * scale)
        x = x.index_select(axis, (torch.arange(out) / scale).long().clamp(max=x.shape[axis] - 1))
    return x.numpy()


@operation("resize_nearest_neighbor")
def _(a: Arguments) -> Array:
    x = a.tensor("x")
    for axis, name in ((-2, "target_size_height"), (-1, "target_size_width")):
        out = a.integer(name)
        x = x.index_select(axis, torch.arange(out) * x.shape[axis] // out)
    return x.numpy()


@operation("resample")
def _(a: Arguments) -> Array:
    assert str(a["coordinates_mode"]) == "normalized_minus_one_to_one"
    padding = {"constant": "zeros", "border": "border", "symmetric": "reflection"}
    assert str(a["padding_mode"]) != "constant" or a.number("padding_value") == 0
    return F.grid_sample(
        a.tensor("x"),
        a.tensor("coordinates"),
        str(a["sampling_mode"]),
        padding[str(a["padding_mode"])],
        a.flag("align_corners"),
    ).numpy()


@operation("pixel_shuffle")
def _(a: Arguments) -> Array:
    return F.pixel_shuffle(a.tensor("x"), a.integer("upscale_factor")).numpy()


@operation("pixel_unshuffle")
def _(a: Arguments) -> Array:
    return F.pixel_unshuffle(a.tensor("x"), a.integer("downscale_factor")).numpy()


@operation("space_to_depth")
def _(a: Arguments) -> Array:
    n, c, h, w = np.shape(a["x"])
    b = a.integer("block_size")
    parts = a.tensor("x").reshape(n, c, h // b, b, w // b, b)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(n, -1, h // b, w // b).numpy()


@operation("depth_to_space")
def _(a: Arguments) -> Array:
    n, c, h, w = np.shape(a["x"])
    b = a.integer("block_size")
    parts = a.tensor("x").reshape(n, b, b, c // b**2, h, w)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * b, w * b).numpy()
