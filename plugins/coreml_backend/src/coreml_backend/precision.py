"""Which operations of a float16 program have to stay in float32."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import coremltools as ct
import torch
from coremltools.converters.mil.mil.block import is_current_opset_version_compatible_with
from torch import Tensor

from coreml_backend.folding import fold_scale, folded_values, without_scales_of_floats
from coreml_backend.slicing import take
from coreml_backend_hooks import CoreMLOptions
from palette_core.tensors import PalettizedTensor

_LOSS = 2.0**-10  # twice what rounding to float16 costs a weight of its normal range
_NEGLIGIBLE = 1e-4  # of the largest channel: what float16 makes of such a channel is not looked at
_AT_ONCE = 1 << 20  # values in float64
_LOOKED_AT = 64  # values of a channel that may tell all there is to know
# Between a weight and the operation that computes with it.
_MOVES = (
    "cast",
    "concat",
    "expand_dims",
    "identity",
    "reshape",
    "slice_by_index",
    "split",
    "squeeze",
    "transpose",
)


def fits_float16(palettized: PalettizedTensor, *, folds: bool = False) -> bool:
    """Return whether a float16 program reads a weight as it is, but for rounding.

    Judged are the values that Core ML decodes once tables and scales are cast: in each output
    channel their root mean square error must be below 2⁻¹⁰ of the channel's root mean square. Of
    weights below 6e-5 float16 keeps fewer digits, above 65504 none.

    Args:
        palettized: as it is to be stored by the conversion at hand.
        folds: by a form that scales no floats, see `folding`.
    """
    p = palettized
    if p.mask is not None:
        p = without_scales_of_floats(p) if folds else p
    elif _is_before_ios26() or (folds and p.lut_scale is None):
        p = fold_scale(p)
    if p.lut_scale is None and p.scale is None and (_rounds_well(p.lut) or _is_large(p)):
        return True
    once = folds and p.lut_scale is not None and p.scale is not None
    read = folded_values(p, torch.float16) if once else _in_float16(p).decode()
    lost, size = _errors(p.decode(), read, p.axis)
    counts = size >= _NEGLIGIBLE * size.max()
    return bool(lost.isfinite().all() and (lost <= _LOSS * size)[counts].all())


def _is_large(p: PalettizedTensor) -> bool:
    """Return whether a few values of each channel tell that float16 loses less than is allowed.

    A value v loses 2⁻¹¹ of itself, or 2⁻²⁵ where it is smaller than float16's normal range. Both
    together stay below `_LOSS` of a channel of n values whose squares add up to more than
    n · 2⁻⁵⁰ / (`_LOSS`² - 2⁻²²), and the squares of a part of it are no more than those of all.
    """
    shape, axis = p.shape, p.axis
    dim = max((at for at in range(len(shape)) if at != axis), key=shape.__getitem__, default=axis)
    part = None if dim == axis else take(p, dim, 0, min(_LOOKED_AT, shape[dim] // p.grid[dim]))
    if p.mask is not None or part is None or p.lut.abs().max() > torch.finfo(torch.float16).max:
        return False
    squares = part.decode().movedim(axis, 0).flatten(1).double().square().sum(1)
    values = math.prod(shape) // shape[axis]
    return bool((squares > values * 2.0**-50 / (_LOSS**2 - 2.0**-22)).all())


def _is_before_ios26() -> bool:
    return not is_current_opset_version_compatible_with(ct.target.iOS26)


def _errors(wanted: Tensor, read: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return norms of error and of weight by channel, a few channels in float64 at a time."""
    wanted, read = (w.movedim(axis, 0).unsqueeze(-1).flatten(1) for w in (wanted, read))
    rows = max(1, _AT_ONCE // max(1, wanted.shape[1]))
    lost = [
        (rounded.double() - exact).norm(dim=1)
        for exact, rounded in zip(torch.split(wanted, rows), torch.split(read, rows), strict=True)
    ]
    size = [exact.double().norm(dim=1) for exact in torch.split(wanted, rows)]
    return torch.cat(lost), torch.cat(size)


def _rounds_well(lut: Tensor) -> bool:
    """Return whether all entries are zeros or in the normal range: they lose 2⁻¹¹ at the most."""
    size, kept = lut.abs(), torch.finfo(torch.float16)
    return bool(((size <= kept.max) & ((size >= kept.smallest_normal) | (size == 0))).all())


def with_float_tables(palettized: PalettizedTensor, *, folds: bool = False) -> PalettizedTensor:
    """Return a float16 weight whose tables are read as they are meant to be.

    The scale of a table of 8-bit integers is small where the weights are, and float16 keeps few
    digits of it, or none. Such a table is stored as what its entries decode to, in float16.
    """
    p = palettized
    if p.dtype != torch.float16 or p.lut_scale is None or fits_float16(p, folds=folds):
        return p
    lut = p.codebook().lut.reshape(p.lut.shape)
    return replace(p, lut=lut, lut_scale=None, lut_zero_point=None)


def _in_float16(p: PalettizedTensor) -> PalettizedTensor:
    def half(part: Tensor | None) -> Tensor | None:
        return part.half() if part is not None and part.is_floating_point() else part

    if p.lut_scale is None:
        lut = p.lut.half()
        return replace(p, lut=lut, scale=half(p.scale), dtype=torch.float16)
    lut = p.lut.half()
    if p.lut_zero_point is not None:
        lut = lut - p.lut_zero_point.half()
    lut = lut * p.lut_scale.half()
    floats = replace(p, lut=lut, lut_scale=None, lut_zero_point=None)
    return replace(floats, scale=half(p.scale), dtype=torch.float16)


def compute_precision(options: CoreMLOptions, wide: Collection[str]) -> Any:
    """Return what ``coremltools.convert`` takes as ``compute_precision``.

    Args:
        options: the precision that is asked for, and operations to leave in float32.
        wide: names of operations that decode weights which float16 does not hold; read when the
            program is cast, so that they may come up during the conversion.
    """
    if options.compute_precision == "float32":
        return ct.precision.FLOAT32

    def selects(op: Any) -> bool:
        if op.op_type in options.float32_operations or _makes(op, wide):
            return False
        return not any(_comes_from(var, wide) for var in _inputs(op))

    return ct.transform.FP16ComputePrecision(op_selector=selects)


def _inputs(op: Any) -> Iterator[Any]:
    for var in op.inputs.values():
        yield from var if isinstance(var, (list, tuple)) else [var]


def _makes(op: Any, wide: Collection[str]) -> bool:
    """Return whether an operation decodes a weight so named, or a part of it."""
    if not op.op_type.startswith("constexpr_"):
        return False
    made = op.outputs[0]
    return made.name in wide or any(_makes(user, wide) for user in made.child_ops)


def _comes_from(var: Any, wide: Collection[str]) -> bool:
    """Return whether a variable is a weight so named, or one moved about."""
    op = getattr(var, "op", None)
    if op is None:
        return False
    if op.op_type.startswith("constexpr_"):
        return _makes(op, wide)
    return op.op_type in _MOVES and any(_comes_from(item, wide) for item in _inputs(op))
