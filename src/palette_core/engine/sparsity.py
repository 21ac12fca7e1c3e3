"""Weights with many zeros: tables for the nonzeros alone, zero beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from palette_core.config.spec import PalettizationSpec
from palette_core.plugins import ClusterProblem
from palette_core.plugins.stored_forms import DENSE_FORM
from palette_core.storage.forms.lookup import stored_form
from palette_core.tensors.codebook import Codebook, QuantizedLut
from palette_core.tensors.layout import BlockLayout
from palette_core.tensors.nonzeros import Nonzeros
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.zeros import in_order, zeros_are_whole

_EQUAL = 1.01  # sizes that are about the same: the error of tables of nonzeros is smaller
_MANY = 0.25  # share of zeros that does not come about by itself
_MOST_ENTRIES = 256  # that a code of one byte can tell apart


class Zeros(NamedTuple):
    """Fate of the zeros of a weight.

    Attributes:
        mask: bool, of the weight's shape: False where it is zero, for tables of nonzeros alone;
            None for tables of the whole weight.
        stay: every zero decodes to zero.
    """

    mask: Tensor | None
    stay: bool


def find_zeros(
    spec: PalettizationSpec, weight: Tensor, layout: BlockLayout, overhead: int
) -> Zeros:
    """Decide about the zeros of a weight by their share, and by what would be smaller.

    Vectors of all elements hold no zero beside another value: there, none but the nonzeros' do.

    Args:
        spec: of the weight.
        weight: dense.
        layout: its blocks.
        overhead: bytes that the sparse form takes beside indices and mask, where it is to stand.
    """
    least = spec.sparsity_detection_threshold
    if least is None:
        return Zeros(None, spec.preserve_zero)
    mask = weight != 0
    every, count = weight.numel(), int(mask.sum())
    zeros = every - count
    if zeros == 0 or zeros < least * every:
        return Zeros(None, spec.preserve_zero)
    asked = spec.stored_form != DENSE_FORM
    # With 1 bit a zero in the table would leave one entry for everything else.
    n_bits = spec.n_bits / spec.cluster_dim  # of one element's share of an index
    form = stored_form(spec.stored_forms[0])
    told = form.mask_bits(tuple(weight.shape), count) + 8 * overhead
    beside = (
        asked
        or n_bits * count + told <= _EQUAL * n_bits * every
        or spec.n_bits == 1
        or not zeros_are_whole(layout.split(mask))
    )
    return Zeros(mask if count and beside else None, stay=True)


def zeros_lost(weight: Tensor, palettized: PalettizedTensor, zeros: int) -> float:
    """Return the share of a pruned weight that is zero and decodes to something else.

    It is 0 where few are zero.

    Args:
        weight: dense.
        palettized: what stands for it.
        zeros: how many of the weight are zero.
    """
    if zeros < _MANY * weight.numel():
        return 0.0
    lost = torch.count_nonzero(palettized.decode()[weight == 0])
    return int(lost) / weight.numel()


def fit_nonzeros(
    problem: ClusterProblem,
    mask: Tensor,
    layout: BlockLayout,
    fit: Callable[[ClusterProblem], Codebook],
) -> Codebook:
    """Cluster the nonzeros of every block, and give zero an entry of its own.

    Blocks with equally many nonzeros are clustered at once. Vectors are of the nonzeros alone, as
    `Nonzeros` has them, and zero needs no entry.

    Args:
        problem: of the whole weight, scalar points ``[B, size, 1]`` whatever the layout.
        mask: bool, of the weight's shape: the nonzeros.
        layout: of the weight.
        fit: clusters.

    Returns:
        The codebook of the whole weight. Of scalars, it has an entry more than the problem asks
        for; of 256, the nonzeros have 255.
    """
    scalar = layout.cluster_dim == 1
    entries = with_room(problem).n_entries - 1 if scalar else problem.n_entries
    problem = replace(problem, n_entries=entries)
    nonzeros = Nonzeros.of(mask.to(problem.points.device), layout)
    points = nonzeros.take(problem.points)
    importance = None if problem.importance is None else nonzeros.take(problem.importance)
    codes = torch.zeros(points.shape[:2], dtype=torch.uint8, device=points.device)
    parts: list[tuple[Tensor, Codebook]] = []
    for blocks, count in nonzeros.evenly():
        part = replace(
            problem,
            points=points[blocks, :count],
            importance=None if importance is None else importance[blocks, :count],
        )
        made = fit(part)
        codes[blocks, :count] = made.codes
        parts.append((blocks, made))
    order = torch.cat([blocks for blocks, _ in parts]).argsort()
    lut = torch.cat([made.lut for _, made in parts])[order]
    quantized = _joined([made.quantized for _, made in parts], order)
    codes = nonzeros.put_codes(codes)
    if not scalar:
        return Codebook(lut, codes, quantized)
    lut = torch.cat([lut, lut.new_zeros((len(lut), 1, 1))], dim=1)
    nonzero = layout.split(mask.to(codes.device))[..., 0]
    codes = torch.where(nonzero, codes, entries).to(torch.uint8)
    quantized = None if quantized is None else _and_zero(quantized)
    return in_order(Codebook(lut, codes, quantized))  # a search for scales wants it so


def _joined(parts: list[QuantizedLut | None], order: Tensor) -> QuantizedLut | None:
    """Put the quantized tables of all parts into the order of the blocks."""
    made = [part for part in parts if part is not None]
    if not made:
        return None
    # By bytes: not every device gathers 8-bit floats.
    values = torch.cat([part.values.view(torch.uint8) for part in made])[order]
    scale = torch.cat([part.scale for part in made])[order]
    points = [part.zero_point for part in made if part.zero_point is not None]
    point = torch.cat(points)[order] if points else None
    return QuantizedLut(values.view(made[0].values.dtype), scale, point)


def _and_zero(tables: QuantizedLut) -> QuantizedLut:
    """Put an entry that is zero behind those of each table."""
    values, point = tables.values.view(torch.uint8), tables.zero_point
    zero = torch.zeros_like(values[:, :1]) if point is None else point.view(torch.uint8)
    values = torch.cat([values, zero.reshape(-1, 1, 1)], dim=1).view(tables.values.dtype)
    return replace(tables, values=values)


def with_room(problem: ClusterProblem) -> ClusterProblem:
    """Return the problem with one more entry in each table, for the zero; 256 stay 256."""
    return replace(problem, n_entries=min(problem.n_entries + 1, _MOST_ENTRIES))


def without_zeros(
    codebook: Codebook, mask: Tensor, layout: BlockLayout, n_entries: int, dtype: torch.dtype
) -> tuple[Codebook, Tensor]:
    """Return tables of ``n_entries`` that stand for nonzeros, and where the weight is none.

    Entries of scalars that are zero leave their table, with what stands on them. Those of vectors
    are moved off zero, by the least that their dtype or their bytes can tell.

    Args:
        codebook: as `fit_nonzeros` returns it.
        mask: bool, of the weight's shape.
        layout: of the tables.
        n_entries: of each table.
        dtype: of the weight.
    """
    if layout.cluster_dim > 1:
        return _off_zero(codebook, dtype), mask
    codebook, kept = beside_zero(codebook, n_entries)
    return codebook, layout.merge(kept[..., None])


def _off_zero(codebook: Codebook, dtype: torch.dtype) -> Codebook:
    lut, quantized = codebook.lut.to(dtype), codebook.quantized
    zero = lut == 0
    if not bool(zero.any()):
        return codebook
    if quantized is None:
        kind = torch.finfo(dtype)
        least = lut.abs().amax(dim=(1, 2), keepdim=True) * kind.eps
        least = least.clamp(min=kind.smallest_normal * kind.eps)
        return replace(codebook, lut=torch.where(zero, least, lut))
    values = quantized.values.view(torch.uint8)
    most = 0xFF if quantized.values.dtype is torch.uint8 else 0x7F
    beside = torch.where(values == most, values - 1, values + 1)
    values = torch.where(zero, beside, values).view(quantized.values.dtype)
    quantized = replace(quantized, values=values)
    return replace(codebook, lut=quantized.dequantize(), quantized=quantized)


def beside_zero(codebook: Codebook, n_entries: int) -> tuple[Codebook, Tensor]:
    """Take the zero out of each table.

    Args:
        codebook: scalar, with an entry that is zero in each table, of one entry more than needed.
        n_entries: of each table that is wanted.

    Returns:
        The tables without it, and ``[B, N]`` bool: the points that decode to something else. The
        codes of the others are 0.
    """
    lut, codes = codebook.lut, codebook.codes.long()
    zero = (lut[..., 0] == 0).to(torch.uint8).argmax(dim=1, keepdim=True)
    kept = lut[..., 0].gather(1, codes) != 0
    codes = torch.where(kept, codes - (codes > zero).long(), 0).to(torch.uint8)
    places = torch.arange(n_entries, device=lut.device).expand(len(lut), -1)
    places = (places + (places >= zero).long()).clamp(max=lut.shape[1] - 1)
    lut = lut.gather(1, places[..., None])
    quantized = codebook.quantized
    if quantized is not None:
        quantized = quantized.taken(places)
    return replace(codebook, lut=lut, codes=codes, quantized=quantized), kept
