"""The compiled pass of `square_sums`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from palette_core._common.kernels import inner_kernel, kernel, kernel_with

_FLOAT32 = 24  # significant bits
# Sums may be added up several elements at a time, as many as the processor takes.
_summing = kernel_with(no_cpython_wrapper=True, fastmath={"reassoc", "contract"})


@kernel
def add_squares(
    x: Any,
    start: int,
    per_unit: float,
    codes: Any,
    table: Any,
    scale: Any,
    digits: int,
    least: int,
    outer: Any,
    along: Any,
    inner: Any,
    width: int,
    dim: int,
    outer_scale: Any,
    along_scale: Any,
    inner_scale: Any,
    out: Any,
) -> None:
    """Add the squares of a stretch of a weight ``[outer, along, inner]``.

    Args:
        x: the elements of the stretch, float32 or float64.
        start: the place of the first one in the weight.
        per_unit: a power of two that all elements are multiplied by.
        codes: ``[outer · along / dim · width]`` uint8, all codes of the weight.
        table: float64, the entries of all LUTs in a row, multiplied by ``per_unit``.
        scale: float64, all factors of entries; None where there are none and ``inner`` is
            ``[1]``, for which alone the plainer half is compiled.
        digits: significant bits of a product of entry and factor, 0 for no factors.
        least: exponent of the smallest step of such a product.
        outer: what the outer index adds to the place of an element's LUT.
        along: what the middle index adds.
        inner: what the inner index adds, ``[1]`` where it is always the same.
        width: size of the inner index.
        dim: D, neighbours along the middle index that share a code.
        outer_scale: what the outer index adds to the place of an element's factor.
        along_scale: what the middle index adds.
        inner_scale: what the inner index adds, ``[1]`` where it is always the same.
        out: ``[3]`` float64 out: Σ (entry − x)², Σ x² and the zeros in x.
    """
    out[2] += _count_zeros(x)
    done = 0
    while done < x.size:
        row = (start + done) // width
        first = start + done - row * width
        count = min(width - first, x.size - done)
        o = row // along.size
        a = row - o * along.size
        code_at = (o * (along.size // dim) + a // dim) * width + first
        own = table[outer[o] + along[a] + a % dim :]
        part, picks = x[done : done + count], codes[code_at : code_at + count]
        if scale is None:
            _add_plain(part, per_unit, picks, own, dim, out)
        else:
            factors = scale
            if digits > 0:
                factors = scale[outer_scale[o] + along_scale[a] :]
            _add_scaled(
                part, first, per_unit, picks, own, dim, inner, factors, inner_scale, digits, least,
                out,
            )  # fmt: skip
        done += count


@inner_kernel
def _count_zeros(x: Any) -> int:
    count, zero = np.int32(0), x.dtype.type(0)  # narrow: counted eight at a time
    for i in range(x.size):
        count += np.int32(x[i] == zero)
    return int(count)


@_summing
def _add_plain(x: Any, per_unit: float, codes: Any, table: Any, dim: int, out: Any) -> None:
    """Add elements of one LUT."""
    error, norm, step = 0.0, 0.0, np.uint64(dim)  # unsigned: signed ones may be negative
    for i in range(np.uint64(x.size)):
        value = np.float64(x[i]) * per_unit
        gap = table[np.uint64(codes[i]) * step] - value
        error += gap * gap
        norm += value * value
    out[0] += error
    out[1] += norm


@inner_kernel
def _add_scaled(
    x: Any,
    first: int,
    per_unit: float,
    codes: Any,
    table: Any,
    dim: int,
    inner: Any,
    factors: Any,
    inner_scale: Any,
    digits: int,
    least: int,
    out: Any,
) -> None:
    """Add elements whose entries have a factor, or that each have a LUT of their own.

    ``out`` is not what sums are added to: the next one would wait until it is written.
    """
    error, norm = out[0], out[1]
    for i in range(x.size):
        value = np.float64(x[i]) * per_unit
        entry = table[codes[i] * dim + (inner[first + i] if inner.size > 1 else 0)]
        if digits > 0:
            entry *= factors[inner_scale[first + i] if inner_scale.size > 1 else 0]
            if digits == _FLOAT32:  # elements of which are never scaled by a power of two
                entry = np.float64(np.float32(entry))
            elif digits < 53:
                entry = _rounded(entry, digits, least)
        gap = entry - value
        error += gap * gap
        norm += value * value
    out[0], out[1] = error, norm


@inner_kernel
def _rounded(value: float, digits: int, least: int) -> float:
    """Round to ``digits`` significant bits, to even, with no step below 2^least."""
    exponent = math.frexp(value)[1]
    step = math.ldexp(1.0, max(exponent - digits, least))
    return float(np.rint(value / step) * step)
