"""Give every look-up table an entry that is exactly zero, and keep zeros on it."""

from __future__ import annotations

import torch
from torch import Tensor

from palette_core.errors import WeightError
from palette_core.tensors.assignment import assign_and_sum, metric
from palette_core.tensors.codebook import Codebook, QuantizedLut
from palette_core.tensors.layout import BlockLayout
from palette_core.tensors.nearest import pieces, squared_distances

_ROUNDS = 10
_LEAST_GAIN = 1e-6  # of the error: with less, entries stay


def zero_points(name: str, points: Tensor) -> Tensor:
    """Return ``[B, N]`` bool: which of the points ``[B, N, D]`` are zero.

    Raises:
        WeightError: zeros and other values share a point; the message has ``name``.
    """
    zero = points == 0
    mixed = int((zero.any(-1) & ~zero.all(-1)).sum())
    if mixed:
        raise WeightError(
            f"{name}: preserve_zero with cluster_dim={points.shape[-1]} needs zeros in whole "
            f"vectors, but {mixed} of {zero[..., 0].numel()} vectors mix zeros with other values; "
            "use cluster_dim=1, or prune whole vectors along the output channels"
        )
    return zero.all(-1)


def zeros_are_whole(nonzero: Tensor) -> bool:
    """Return whether points ``[B, N, D]`` are zero in all of their elements or in none."""
    return nonzero.shape[-1] == 1 or bool((nonzero.any(-1) == nonzero.all(-1)).all())


def fill_points(points: Tensor, zeros: Tensor) -> Tensor:
    """Return points ``[B, N, D]`` that are zero where ``zeros`` ``[B, N]`` bool says so."""
    return points.masked_fill(zeros[..., None], 0.0)


def keep_zeros(
    points: Tensor,
    importance: Tensor | None,
    codebook: Codebook,
    dtype: torch.dtype,
    *,
    reassign: bool = True,
) -> Codebook:
    """Make one entry of each table zero: the one that costs least, in Σ w (x − c)².

    Points that are zero get it, and every other point its nearest entry. Other entries of tables
    that are not quantized move to the means of their points.

    Args:
        points: ``[B, N, D]`` floating.
        importance: ``[B, N, D]`` elementwise, or None.
        codebook: the result of clustering the points; not written to.
        dtype: of the entries, as they will decode.
        reassign: False leaves entries and assignment as an algorithm that looks at more than
            distances has made them, but for the entry that is replaced.
    """
    entries = codebook.lut.to(dtype)
    taken = _cheapest(points, importance, entries)
    zeros = torch.zeros(entries.shape[:2], dtype=torch.bool, device=entries.device)
    zeros.scatter_(1, taken[:, None], value=True)
    quantized = None if codebook.quantized is None else with_zeros(codebook.quantized, zeros)
    entries = entries.masked_fill(zeros[..., None], 0.0)
    if quantized is None and reassign:
        entries = _refined(points, importance, entries, zeros, codebook.codes)
    codes = assign_and_sum(points, metric(importance), entries.double(), codebook.codes).codes
    if not reassign:
        codes = torch.where(codebook.codes == taken[:, None], codes, codebook.codes)
    codes = torch.where((points == 0).all(-1), taken[:, None].to(torch.uint8), codes)
    exact = entries if quantized is None else quantized.dequantize()
    return in_order(Codebook(exact, codes, quantized))


def in_order(codebook: Codebook) -> Codebook:
    """Put scalar entries in ascending order, and leave vectors; nothing is taken for spare."""
    lut, quantized = codebook.lut, codebook.quantized
    if lut.shape[-1] > 1:
        return codebook
    ordered, order = lut[..., 0].sort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    codes = rank.to(torch.uint8).gather(1, codebook.codes.long())
    if quantized is not None:
        quantized = quantized.taken(order)
    before, after = codebook.objective_before, codebook.objective_after
    return Codebook(ordered[..., None], codes, quantized, before, after)


def _cheapest(points: Tensor, importance: Tensor | None, entries: Tensor) -> Tensor:
    """Return ``[B]``: the entry of each table whose replacement by zero costs least."""
    extra = torch.zeros(entries.shape[:2], dtype=torch.float64, device=points.device)
    for block, piece in pieces(len(points), points.shape[1], entries[0].numel()):
        x = points[block, piece].double()
        w = None if importance is None else importance[block, piece].double()
        far = squared_distances(x, entries[block].double(), w)
        found = far.topk(2, dim=-1, largest=False)
        first, second = found.values.unbind(-1)
        at_zero = (x.square() if w is None else w * x.square()).sum(-1)
        # Without an entry, its points go to the next one or to zero; others to zero if nearer.
        without = torch.minimum(second, at_zero) - torch.minimum(first, at_zero)
        extra[block] += torch.zeros_like(extra[block]).scatter_add_(
            1, found.indices[..., 0], without
        )
    return extra.argmin(dim=1)


def _refined(
    points: Tensor, importance: Tensor | None, entries: Tensor, zeros: Tensor, codes: Tensor
) -> Tensor:
    """Move entries to the means of their points, zero apart, while that lowers the error."""
    best = entries
    found = assign_and_sum(points, importance, entries.double(), codes)
    least = found.cost
    for _ in range(_ROUNDS):
        means = found.means(entries.double())
        entries = means.to(entries.dtype).masked_fill(zeros[..., None], 0.0)
        found = assign_and_sum(points, importance, entries.double(), found.codes)
        better = found.cost < least * (1 - _LEAST_GAIN)
        best = torch.where(better[:, None, None], entries, best)
        least = torch.where(better, found.cost, least)
        if not bool(better.any()):
            break
    return best


def zero_mask(weight: Tensor, layout: BlockLayout) -> Tensor:
    """Return where a weight is zero, in whole vectors: bool, of its shape."""
    if layout.cluster_dim == 1:
        return weight.detach() == 0
    zeros = (layout.split(weight.detach()) == 0).all(-1, keepdim=True)
    return layout.merge(zeros.expand(-1, -1, layout.cluster_dim))


def with_zeros(lut: QuantizedLut, zero_entries: Tensor) -> QuantizedLut:
    """Return quantized tables whose ``zero_entries`` ``[B, K]`` decode to exactly zero."""
    # By bytes: not every device fills 8-bit floats. All their zeros are zero bytes.
    values = lut.values.view(torch.uint8)
    zero = torch.zeros_like(values[:, :1, :1])
    if lut.zero_point is not None:
        zero = lut.zero_point.view(torch.uint8)
    values = torch.where(zero_entries[..., None], zero, values).view(lut.values.dtype)
    return QuantizedLut(values, lut.scale, lut.zero_point)
