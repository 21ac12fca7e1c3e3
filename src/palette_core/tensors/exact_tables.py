"""Quantized tables that decode to given entries exactly, where there are such."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from palette_core.tensors.codebook import Codebook
from palette_core.tensors.quantized_fit import Quantizer, put_rows, rows_of

_SIGNED = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_STEPS = 255  # between the levels of an 8-bit integer


def quantize_exactly(
    exact: Codebook, made: Codebook, quantizer: Quantizer, dtype: torch.dtype
) -> Codebook:
    """Replace the quantized tables that miss their entries, where others would not.

    A table that was quantized before, and whose entries have been rounded to 16 bits since, has
    many scales that give the same entries again; the one with the smallest error need not be
    among them.

    Args:
        exact: float tables, each entry a value of ``dtype``.
        made: of the same points, quantized.
        quantizer: all results come out of it.
        dtype: in which entries decode.

    Returns:
        ``made``, with the codes of ``exact`` and other tables where these are exact.
    """
    tables = made.quantized
    assert tables is not None
    entries = exact.lut.to(dtype)
    missed = (made.decode().to(dtype) != exact.decode().to(dtype)).flatten(1).any(dim=1)
    blocks = missed.nonzero()[:, 0]
    if not len(blocks):
        return made
    proposed, found = _proposals(entries[blocks], tables.values.dtype)
    blocks = blocks[found]
    if not len(blocks):
        return made
    again = quantizer.quantize(proposed[found])
    hit = (again.dequantize().to(dtype) == entries[blocks]).flatten(1).all(dim=1)
    blocks = blocks[hit]
    chosen = put_rows(tables, blocks, rows_of(again, hit))
    codes = made.codes.index_copy(0, blocks, exact.codes[blocks])
    return replace(made, lut=chosen.dequantize(), codes=codes, quantized=chosen)


def _proposals(entries: Tensor, stored: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return float32 entries on levels that round to the given ones; and ``[B]``, where."""
    from palette_core.tensors._exact_scale_kernel import exact_scales  # numba loads slowly

    size = entries.abs().flatten(1).sort(dim=1, descending=True).values
    ladder = _ladder(stored)
    low, high = rounding_ends(size)
    ends = exact_scales(low.cpu().numpy(), high.cpu().numpy(), ladder.numpy())
    scale = torch.from_numpy(ends).mean(dim=1).float().double()
    middle = (ladder[1:] + ladder[:-1]) / 2
    levels = entries.double().cpu() / torch.where(scale > 0, scale, 1.0)[:, None, None]
    near = torch.cat([ladder.new_zeros(1), ladder])[
        torch.bucketize(levels.abs(), torch.cat([ladder[:1] / 2, middle]))
    ]
    proposed = (near * levels.sign() * scale[:, None, None]).float()
    hit = (proposed.to(entries.dtype) == entries.cpu()).flatten(1).all(dim=1)
    return proposed.to(entries.device), hit.to(entries.device)


def _ladder(stored: torch.dtype) -> Tensor:
    """Return the positive levels ``[L]`` float64 of a dtype of one byte, less any zero point."""
    if not stored.is_floating_point:
        return torch.arange(1, _STEPS + 1, dtype=torch.float64)
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(stored).double()
    return codes[codes.isfinite() & (codes > 0)].sort().values


def rounding_ends(size: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ends of what rounds to each magnitude, float64; zeros for zero."""
    bits = size.contiguous().view(_SIGNED[size.element_size()])
    wide = size.double()
    above = (bits + 1).view(size.dtype).double()
    below = (bits - (size > 0).to(bits.dtype)).view(size.dtype).double()
    zero = size == 0
    return ((wide + below) / 2).masked_fill(zero, 0.0), ((wide + above) / 2).masked_fill(zero, 0.0)
