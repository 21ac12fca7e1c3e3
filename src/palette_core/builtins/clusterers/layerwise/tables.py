"""Look-up tables on their way to the least tr(ΔW H ΔWᵀ): stored forms, and least squares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from palette_core._common.threads import map_threads, slices_of
from palette_core.builtins.clusterers.layerwise import entries as entries_of
from palette_core.plugins import LutQuantizer
from palette_core.tensors import QuantizedLut, with_zeros

Array = NDArray[Any]
_FLOPS = 1 << 20  # of solutions that are worth a thread


@dataclass(frozen=True)
class Tables:
    """Entries as they decode, ``[B, K, D]`` float32, and what is stored of quantized ones.

    ``zero`` ``[B]`` says which entry of each table is zero and stays so; None: all may move.
    """

    lut: Array
    stored: QuantizedLut | None
    zero: Array | None = None

    def where(self, first: Array, other: Tables) -> Tables:
        """Return ``other`` for the tables of which ``first`` ``[B]`` bool holds, else this."""
        lut = np.where(first[:, None, None], other.lut, self.lut)
        stored = zero = None
        if self.stored is not None and other.stored is not None:
            stored = _where(torch.from_numpy(first), other.stored, self.stored)
        if self.zero is not None and other.zero is not None:
            zero = np.where(first, other.zero, self.zero)
        return Tables(lut, stored, zero)


def cast_tables(entries: Array, dtype: torch.dtype) -> Tables:
    """Return entries as they are when stored in ``dtype``."""
    cast = torch.from_numpy(np.ascontiguousarray(entries)).to(dtype).float()
    return Tables(cast.numpy(), None)


def quantized_tables(stored: QuantizedLut, dtype: torch.dtype) -> Tables:
    """Return quantized entries as they decode in a weight of ``dtype``."""
    return Tables(stored.dequantize().to(dtype).float().contiguous().numpy(), stored)


def refitted(
    tables: Tables,
    batch: Array,
    square: Array,
    right: Array,
    dtype: torch.dtype,
    quantizer: LutQuantizer | None,
) -> Tables:
    """Return tables with the least-squares entries for some of them, where that is better.

    Args:
        tables: before; not written to.
        batch: ``[n]`` which tables.
        square: ``[n, D, K, K]``, A, and
        right: ``[n, D, K]``, b: a change δ of a table's entries changes the objective by
            Σ_d δᵀ A δ − 2 bᵀ δ.
        dtype: of the weight.
        quantizer: how entries are stored. Then they are the best found of: the quantizer's of
            the least-squares solution, and levels at its scale and at the present one that
            coordinate descent finds in the metric A.
    """
    present = tables.lut[batch].astype(np.float64)
    ideal = np.empty_like(present)
    fixed = np.full(len(batch), -1) if tables.zero is None else tables.zero[batch].astype(np.int64)

    def some(part: slice) -> None:
        entries_of.solve(square, right, fixed, ideal, part.start, part.stop)

    map_threads(some, slices_of(len(batch), max(1, _FLOPS // present.shape[1] ** 3)))
    ideal += present
    wide = np.zeros(len(tables.lut), np.bool_)
    if quantizer is None or tables.stored is None:
        proposals = [cast_tables(ideal, dtype)]
    else:
        now = _some(tables.stored, torch.from_numpy(batch))
        first = _quantized(quantizer, ideal, fixed)
        rounded = [_rounded(present, ideal, square, right, base, fixed) for base in (first, now)]
        made = [first, *(_quantized(quantizer, r, fixed) for r in rounded)]
        proposals = [quantized_tables(each, dtype) for each in made]
    least = np.zeros(len(batch))
    best = tables
    for proposal in proposals:
        step = proposal.lut.astype(np.float64) - present
        change = np.einsum("nkd,ndkl,nld->n", step, square, step)
        change -= 2.0 * np.einsum("ndk,nkd->n", right, step)
        take = change < least
        least = np.where(take, change, least)
        wide[:] = False
        wide[batch] = take
        best = best.where(wide, _spread(proposal, batch, best))
    return best


def _quantized(quantizer: LutQuantizer, entries: Array, fixed: Array) -> QuantizedLut:
    """Quantize entries; those that are ``fixed`` ``[n]`` (-1: none) decode to exactly zero."""
    made = quantizer.quantize(torch.from_numpy(entries))
    if (fixed < 0).any():
        return made
    return with_zeros(made, torch.from_numpy(np.arange(entries.shape[1]) == fixed[:, None]))


def _rounded(
    present: Array,
    ideal: Array,
    square: Array,
    right: Array,
    base: QuantizedLut,
    fixed: Array,
) -> Array:
    """Return ``ideal`` put on the levels of ``base``, in the metric of the objective."""
    ladder = _ladder(base)
    out = ideal.copy()

    def one(i: int) -> None:
        levels = np.unique(ladder[i][np.isfinite(ladder[i])])
        for d in range(out.shape[2]):
            column = np.ascontiguousarray(out[i, :, d])
            entries = np.ascontiguousarray(present[i, :, d])
            entries_of.round_entries(square[i, d], right[i, d], entries, levels, fixed[i], column)
            out[i, :, d] = column

    map_threads(one, range(len(out)))
    return out


def _ladder(base: QuantizedLut) -> Array:
    """Return ``[n, 256]`` float64: all that a byte can decode to in each table."""
    byte = torch.arange(256, dtype=torch.uint8).view(base.values.dtype)
    values = byte[None, :, None].expand(base.values.shape[0], -1, 1)
    ladder: Array = QuantizedLut(values, base.scale, base.zero_point).dequantize().double().numpy()
    return ladder[:, :, 0]


def sort_entries(tables: Tables, codes: Array, table: Array) -> tuple[Tables, Array]:
    """Put scalar entries in ascending order again; vectors stay as they are."""
    lut = tables.lut
    if lut.shape[2] > 1 or not (np.diff(lut[:, :, 0], axis=1) < 0).any():
        return tables, codes
    order = np.argsort(lut[:, :, 0], axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable").astype(np.uint8)
    lut = np.take_along_axis(lut, order[:, :, None], axis=1)
    stored = tables.stored
    if stored is not None:
        raw = stored.values.view(torch.uint8).gather(1, torch.from_numpy(order)[:, :, None])
        stored = QuantizedLut(raw.view(stored.values.dtype), stored.scale, stored.zero_point)
    zero = tables.zero
    if zero is not None:
        zero = rank[np.arange(len(zero)), zero].astype(zero.dtype)
    return Tables(np.ascontiguousarray(lut), stored, zero), rank[table, codes]


def _some(stored: QuantizedLut, which: torch.Tensor) -> QuantizedLut:
    zero = stored.zero_point
    return QuantizedLut(
        stored.values.view(torch.uint8)[which].view(stored.values.dtype),
        stored.scale[which],
        None if zero is None else zero[which],
    )


def _spread(some: Tables, batch: Array, all_of: Tables) -> Tables:
    """Return ``all_of`` with the tables in ``batch`` replaced by ``some``."""
    lut = all_of.lut.copy()
    lut[batch] = some.lut
    if some.stored is None or all_of.stored is None:
        return replace(all_of, lut=lut)
    at = torch.from_numpy(batch)
    new, old = some.stored, all_of.stored
    values = old.values.view(torch.uint8).clone()
    values[at] = new.values.view(torch.uint8)
    scale = old.scale.clone()
    scale[at] = new.scale
    zero = None
    if old.zero_point is not None and new.zero_point is not None:
        zero = old.zero_point.clone()
        zero[at] = new.zero_point
    return replace(all_of, lut=lut, stored=QuantizedLut(values.view(old.values.dtype), scale, zero))


def _where(first: torch.Tensor, a: QuantizedLut, b: QuantizedLut) -> QuantizedLut:
    keep = first[:, None, None]
    values = torch.where(keep, a.values.view(torch.uint8), b.values.view(torch.uint8))
    zero = None
    if a.zero_point is not None and b.zero_point is not None:
        zero = torch.where(keep, a.zero_point, b.zero_point)
    return QuantizedLut(values.view(a.values.dtype), torch.where(keep, a.scale, b.scale), zero)
