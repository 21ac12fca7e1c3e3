"""Joint refinement of a codebook whose entries are stored quantized."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from palette_core.errors import ClusteringError
from palette_core.tensors.assignment import (
    PassResult,
    assign_and_sum,
    metric,
    tidy_entries,
)
from palette_core.tensors.assignment.tables import tables_of
from palette_core.tensors.codebook import Codebook, QuantizedLut
from palette_core.tensors.nearest import assign

_MOST_ROUNDS = 20
_SAME = 1e-7  # of the largest entry: less than float32 rounds
_LEAST_GAIN = 1e-6  # of the cost of every block: with less, refinement ends
# Scales tried, as factors of the present one: widely at first, then nearby.
_WIDE = tuple(0.5 + 0.04 * i for i in range(21))
_NEARBY = (0.98, 0.99, 1.0, 1.01, 1.02)
_REFITS = 2
_TOGETHER = 1 << 17  # entries of several scales that are looked at in one go


class Quantizer(Protocol):
    """Makes quantized entries of a float LUT ``[B, K, D]``: any LUT quantizer."""

    def quantize(self, lut: Tensor, /) -> QuantizedLut:
        """Return the LUT as it can be stored."""


def quantize_codebook(
    points: Tensor, importance: Tensor | None, codebook: Codebook, quantizer: Quantizer
) -> Codebook:
    """Quantize a codebook's entries and refit entries, scale and assignment to each other.

    Starts from the quantized entries with every point assigned anew, then alternates: entries
    towards the means of their points under several proposals (the quantizer's own, and scales
    that weigh each entry by its points), points to their nearest entries. Only steps that lower
    Σ w (x − c)² of a block are taken, until none does. Distances are to the entries as they
    decode: ``(values − zero point) · scale`` in float32, cast to the dtype of the points.

    Args:
        points: ``[B, N, D]`` floating.
        importance: ``[B, N, D]`` elementwise and not negative, or None.
        codebook: the result of clustering the points; not written to.
        quantizer: makes the quantized entries; all results come out of it.

    Returns:
        a codebook with ``quantized`` set and ``lut`` equal to its ``dequantize()``; entries that
        no point uses repeat the last one, the others are in the order of their coordinates.

    Raises:
        ClusteringError: the quantizer returned something that does not fit the LUT.
    """
    start = codebook.lut.detach()
    best = _quantize(quantizer, start)
    tables = tables_of(points, importance, codebook.codes)
    blocks = torch.arange(len(points), device=points.device)
    state = tables.weigh(_decoded(best, points.dtype), blocks)
    last = start.double(), best
    for turn in range(_MOST_ROUNDS):
        now, its_state = rows_of(best, blocks), state.rows(blocks)
        stretches = _NEARBY if turn else _WIDE
        proposal, last = _propose(its_state, now, last, quantizer, points.dtype, stretches)
        found = tables.weigh(_decoded(proposal, points.dtype), blocks)
        better = found.cost < its_state.cost
        best = put_rows(best, blocks[better], rows_of(proposal, better))
        state.put(blocks[better], found.rows(better))
        if not bool((found.cost < its_state.cost * (1 - _LEAST_GAIN)).any()):
            break
        if turn:
            blocks = blocks[better]  # the same proposal would not help the others
            last = last[0][better], rows_of(last[1], better)
    return tidy_quantized(best, _nearest(points, importance, best, codebook.codes))


def _nearest(
    points: Tensor, importance: Tensor | None, best: QuantizedLut, codes: Tensor
) -> Tensor:
    entries = _decoded(best, points.dtype)
    if points.shape[2] == 1:
        entries = entries.to(torch.promote_types(points.dtype, torch.float32))
        if points.device.type != "cpu":
            return assign(points, entries)
        from palette_core.tensors.assignment.cpu import nearest_scalars  # numba loads slowly

        return nearest_scalars(points, entries)
    return assign_and_sum(points, metric(importance), entries, codes).codes


def _quantize(quantizer: Quantizer, lut: Tensor) -> QuantizedLut:
    made = quantizer.quantize(lut)
    blocks = lut.shape[0]
    if made.values.shape != lut.shape or made.scale.shape != (blocks, 1, 1):
        raise ClusteringError(
            f"{type(quantizer).__name__} returned values {tuple(made.values.shape)} and scale "
            f"{tuple(made.scale.shape)} for a LUT {tuple(lut.shape)}; expected the LUT's shape and "
            f"{(blocks, 1, 1)}"
        )
    return made


def _decoded(quantized: QuantizedLut, dtype: torch.dtype) -> Tensor:
    return quantized.dequantize().to(dtype).double()


_Known = tuple[Tensor, QuantizedLut]  # float tables, and what the quantizer made of them


def _propose(
    state: PassResult,
    best: QuantizedLut,
    last: _Known,
    quantizer: Quantizer,
    dtype: torch.dtype,
    stretches: tuple[float, ...],
) -> tuple[QuantizedLut, _Known]:
    """Return quantized entries nearer to the means of the points, block by block the best found.

    With them comes what has been made of the means, for the next time.
    """
    present = best.dequantize().double()
    mass, means = state.mass, state.means(present)
    scale = best.scale.double()
    targets = [
        means,
        _levels(means, scale, best) * scale,
        _weighted_fit(means, mass, best, stretches),
    ]
    chosen, of_means = best, best
    error = torch.full_like(state.cost, torch.inf)
    for target in targets:
        made = _made_before(target, [(present, best), last], quantizer)
        of_means = made if target is means else of_means
        gap = _decoded(made, dtype) - means
        made_error = (mass * gap.square()).flatten(1).sum(dim=1).nan_to_num(torch.inf)
        nearer = made_error < error
        chosen = choose_tables(nearer, made, chosen)
        error = torch.where(nearer, made_error, error)
    return chosen, (means, of_means)


def _made_before(target: Tensor, known: list[_Known], quantizer: Quantizer) -> QuantizedLut:
    """Quantize tables, but for those of which it is known what comes out."""
    made = known[0][1]
    unknown = torch.ones(len(target), dtype=torch.bool, device=target.device)
    for tables, quantized in known:
        most = tables.abs().amax(dim=(1, 2), keepdim=True)
        same = ((target - tables).abs() <= _SAME * most).flatten(1).all(dim=1) & unknown
        if bool(same.any()):
            made = choose_tables(same, quantized, made)
            unknown &= ~same
    if bool(unknown.all()):
        return _quantize(quantizer, target)
    if not bool(unknown.any()):
        return made
    return put_rows(made, unknown, _quantize(quantizer, target[unknown]))


def _weighted_fit(
    means: Tensor, mass: Tensor, best: QuantizedLut, stretches: tuple[float, ...]
) -> Tensor:
    """Return levels times the scale that suits entries weighted by their points.

    The levels may be such that the quantizer cannot store them; it then makes its best of them.
    """
    fit = torch.full(means.shape[:1], torch.inf, dtype=means.dtype, device=means.device)
    out = means
    together = max(1, _TOGETHER // means.numel())
    for at in range(0, len(stretches), together):
        some = torch.tensor(stretches[at : at + together], dtype=means.dtype, device=means.device)
        scale = best.scale.double() * some[:, None, None, None]
        for _ in range(_REFITS):
            levels = _levels(means, scale, best)
            square = (mass * levels.square()).flatten(2).sum(dim=2)
            refit = (mass * means * levels).flatten(2).sum(dim=2) / torch.where(
                square > 0, square, 1.0
            )
            scale = torch.where(refit > 0, refit, scale[..., 0, 0])[..., None, None]
        target = levels * scale
        errors = (mass * (means - target).square()).flatten(2).sum(dim=2)
        for error, made in zip(errors, target, strict=True):
            nearer = error < fit
            fit = torch.where(nearer, error, fit)
            out = torch.where(nearer[:, None, None], made, out)
    return out


def _levels(means: Tensor, scale: Tensor, best: QuantizedLut) -> Tensor:
    """Return the levels (values less zero point, float64) nearest to ``means / scale``."""
    dtype = best.values.dtype
    zero = torch.zeros_like(scale) if best.zero_point is None else best.zero_point.double()
    levels = means / scale
    if dtype.is_floating_point:
        largest = torch.finfo(dtype).max
        return levels.clamp(-largest, largest).float().to(dtype).double() - zero
    info = torch.iinfo(dtype)
    return (levels.round() + zero).clamp(info.min, info.max) - zero


def choose_tables(first: Tensor, a: QuantizedLut, b: QuantizedLut) -> QuantizedLut:
    """Return tables of ``a`` where ``first`` ``[B]`` bool holds, and of ``b`` elsewhere."""
    return put_rows(b, first, rows_of(a, first))


def rows_of(tables: QuantizedLut, rows: Tensor) -> QuantizedLut:
    """Return some of the tables: ``rows`` are their places, or a mask."""
    # By bytes: not every device gathers 8-bit floats.
    values = tables.values.view(torch.uint8)[rows].view(tables.values.dtype)
    zero = None if tables.zero_point is None else tables.zero_point[rows]
    return QuantizedLut(values, tables.scale[rows], zero)


def put_rows(tables: QuantizedLut, rows: Tensor, others: QuantizedLut) -> QuantizedLut:
    """Return the tables with others in the place of some."""
    values, scale, zero = tables.values.view(torch.uint8).clone(), tables.scale.clone(), None
    values[rows] = others.values.view(torch.uint8)
    scale[rows] = others.scale
    if tables.zero_point is not None and others.zero_point is not None:
        zero = tables.zero_point.clone()
        zero[rows] = others.zero_point
    return QuantizedLut(values.view(tables.values.dtype), scale, zero)


def tidy_quantized(quantized: QuantizedLut, codes: Tensor) -> Codebook:
    """Put used entries in the order of their coordinates, spare ones last as repeats."""
    _, source, codes = tidy_entries(quantized.dequantize(), codes)
    tidy = quantized.taken(source)
    return Codebook(tidy.dequantize(), codes, tidy)
