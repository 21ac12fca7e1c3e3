"""Joint refinement of a codebook whose entries are stored quantized."""

from __future__ import annotations

from typing import Protocol

import numpy as np
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
        every = len(blocks) == len(points)
        now, its_state = (best, state) if every else (rows_of(best, blocks), state.rows(blocks))
        stretches = _NEARBY if turn else _WIDE
        proposal, last = _propose(its_state, now, last, quantizer, points.dtype, stretches)
        found = tables.weigh(_decoded(proposal, points.dtype), blocks)
        better = found.cost < its_state.cost
        gained = bool((found.cost < its_state.cost * (1 - _LEAST_GAIN)).any())
        if every and bool(better.all()):
            best, state = proposal, found
        elif bool(better.any()):
            best = put_rows(best, blocks[better], rows_of(proposal, better))
            state.put(blocks[better], found.rows(better))
        if not gained:
            break
        if turn and not bool(better.all()):
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
    targets = _targets(means, mass, best, stretches)
    made, places = _made(targets, [(present, best), last], quantizer)
    gap = _decoded(made, dtype)[places] - means
    error = (mass * gap.square()).flatten(2).sum(dim=2).nan_to_num(torch.inf)
    least = error.min(dim=0)
    chosen = rows_of(made, places.gather(0, least.indices[None])[0])
    finite = least.values.isfinite()
    if not bool(finite.all()):
        chosen = choose_tables(finite, chosen, best)
    return chosen, (means, rows_of(made, places[0]))


def _targets(
    means: Tensor, mass: Tensor, best: QuantizedLut, stretches: tuple[float, ...]
) -> Tensor:
    """Return float tables to quantize, ``[3, B, K, D]``; the means come first."""
    scale, dtype = best.scale.double(), best.values.dtype
    if means.device.type != "cpu" or dtype.is_floating_point:
        fitted = _weighted_fit(means, mass, best, stretches)
        return torch.stack([means, _levels(means, scale, best) * scale, fitted])
    from palette_core.tensors._quantized_kernel import propose_integers  # numba loads slowly

    zero = torch.zeros_like(scale) if best.zero_point is None else best.zero_point.double()
    info, out = torch.iinfo(dtype), means.new_empty(3, *means.shape)
    propose_integers(
        means.flatten(1).numpy(), mass.flatten(1).numpy(), scale.flatten().numpy(),
        zero.flatten().numpy(), info.min, info.max, np.array(stretches), _REFITS,
        out.flatten(2).numpy(),
    )  # fmt: skip
    return out


def _made(
    targets: Tensor, known: list[_Known], quantizer: Quantizer
) -> tuple[QuantizedLut, Tensor]:
    """Quantize tables ``[T, B, K, D]``, but for those of which it is known what comes out.

    Returns:
        quantized tables, and which of them each target has become, ``[T, B]``.
    """
    same = _same(targets, torch.stack([tables for tables, _ in known]))
    unknown = (same < 0).flatten()
    outcomes = [quantized for _, quantized in known]
    if bool(unknown.any()):
        outcomes.append(_quantize(quantizer, targets.flatten(0, 1)[unknown]))
    blocks = targets.shape[1]
    old = same * blocks + torch.arange(blocks, device=same.device)
    new = len(known) * blocks - 1 + unknown.cumsum(0)
    return _joined(outcomes), torch.where(unknown, new, old.flatten()).view_as(same)


def _same(targets: Tensor, known: Tensor) -> Tensor:
    """Return which known table ``[R, B, K, D]`` each target is, the first of several, or -1."""
    if targets.device.type == "cpu":
        from palette_core.tensors._quantized_kernel import find_same

        out = torch.empty(targets.shape[:2], dtype=torch.int64)
        find_same(targets.flatten(2).numpy(), known.flatten(2).numpy(), _SAME, out.numpy())
        return out
    most = known.abs().amax(dim=(2, 3), keepdim=True)
    near = ((targets[None] - known[:, None]).abs() <= _SAME * most[:, None]).flatten(3).all(dim=3)
    first = near.to(torch.uint8).argmax(dim=0)
    return torch.where(near.any(dim=0), first, -1)


def _joined(tables: list[QuantizedLut]) -> QuantizedLut:
    values = torch.cat([one.values.view(torch.uint8) for one in tables])
    zeros = [one.zero_point for one in tables if one.zero_point is not None]
    return QuantizedLut(
        values.view(tables[0].values.dtype),
        torch.cat([one.scale for one in tables]),
        torch.cat(zeros) if zeros else None,
    )


def _weighted_fit(
    means: Tensor, mass: Tensor, best: QuantizedLut, stretches: tuple[float, ...]
) -> Tensor:
    """Return levels times the scale that suits entries weighted by their points.

    The levels may be such that the quantizer cannot store them; it then makes its best of them.
    """
    fit = torch.full(means.shape[:1], torch.inf, dtype=means.dtype, device=means.device)
    out, every = means, torch.arange(len(means), device=means.device)
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
        least = errors.nan_to_num(torch.inf).min(dim=0)
        nearer = least.values < fit
        fit = torch.where(nearer, least.values, fit)
        out = torch.where(nearer[:, None, None], target[least.indices, every], out)
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
