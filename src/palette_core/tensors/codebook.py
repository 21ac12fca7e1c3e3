"""Codebooks: look-up tables, quantized or not, with codes of points; and looking codes up."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

_DECODE_CHUNK = 1 << 24  # indices widened at once while decoding
_GATHER_CHUNK = 1 << 17


@dataclass(frozen=True)
class QuantizedLut:
    """Look-up tables with integer or 8-bit float entries.

    The value of an entry is ``(values - zero_point) * scale``, computed in float32.

    Attributes:
        values: ``[…, K, D]`` of a dtype of one byte, integer or floating.
        scale: ``[…, 1, 1]`` float32, one per LUT.
        zero_point: ``[…, 1, 1]`` in the dtype of ``values``, or None (always for 8-bit floats).
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor | None = None

    def dequantize(self) -> Tensor:
        """Return the entries as float32 ``[…, K, D]``."""
        return dequantize_lut(self.values, self.scale, self.zero_point)

    def taken(self, places: Tensor) -> QuantizedLut:
        """Return the entries at places ``[B, K]`` int64 of each table, in that order."""
        # By bytes: not every device gathers 8-bit floats.
        wide = places[..., None].expand(-1, -1, self.values.shape[-1])
        values = self.values.view(torch.uint8).gather(1, wide).view(self.values.dtype)
        return replace(self, values=values)


def dequantize_lut(values: Tensor, scale: Tensor | None, zero_point: Tensor | None) -> Tensor:
    """Return LUT entries as floats: unchanged without a scale, float32 with one."""
    if scale is None:
        return values
    entries = values.to(torch.float32)
    if zero_point is not None:
        entries = entries - zero_point.to(torch.float32)
    return entries * scale.to(torch.float32)


@dataclass(frozen=True)
class Codebook:
    """The result of clustering B blocks of N points with D coordinates.

    Attributes:
        lut: ``[B, K, D]`` floating, the centroids. Scalar ones (D = 1) in ascending order; spare
            entries repeat the last one.
        codes: ``[B, N]`` uint8, the entry that stands for each point.
        quantized: the entries in quantized form, from algorithms that fit under the quantizer;
            then ``lut`` is ``quantized.dequantize()``.
        objective_before: what an algorithm set out to lower, at its own plain start, and
        objective_after: at the result; None from algorithms that do not say.
    """

    lut: Tensor
    codes: Tensor
    quantized: QuantizedLut | None = None
    objective_before: float | None = None
    objective_after: float | None = None

    def decode(self) -> Tensor:
        """Return the points ``[B, N, D]`` that the codes stand for."""
        return gather_entries(self.lut, self.codes)


def gather_entries(lut: Tensor, codes: Tensor) -> Tensor:
    """Look up codes ``[B, N]`` in tables ``[B, K, D]``; returns ``[B, N, D]``."""
    if _on_host(lut) and _on_host(codes):
        return _gather_on_host(lut, codes)
    blocks, entries, dim = lut.shape
    # A 1-D table is looked up twice as fast as one of single columns.
    table = lut.reshape(-1) if dim == 1 else lut.reshape(blocks * entries, dim)
    first = torch.arange(blocks, device=codes.device, dtype=torch.int32)[:, None] * entries
    step = max(1, _DECODE_CHUNK // max(1, codes.shape[1]))
    parts = []
    for at in range(0, blocks, step):
        rows = codes[at : at + step].to(torch.int32) + first[at : at + step]
        parts.append(table.index_select(0, rows.reshape(-1)))
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(*codes.shape, dim)


def _on_host(tensor: Tensor) -> bool:
    """Return whether numpy may read a tensor: plain values in memory, without a graph."""
    return (
        type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and not tensor.requires_grad
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _gather_on_host(lut: Tensor, codes: Tensor) -> Tensor:
    """Look up by numpy, which takes one-byte indices as they are: three times as fast."""
    tables = lut.contiguous().view(_SAME_SIZE[lut.element_size()]).numpy()
    index = codes.numpy()
    out = np.empty((*index.shape, lut.shape[-1]), tables.dtype)
    for block, (table, row) in enumerate(zip(tables, index, strict=True)):
        # In pieces: numpy makes 64-bit indices of what it is given. Anything but "raise" as mode
        # lets it write where it should; no index is out of range.
        for at in range(0, len(row), _GATHER_CHUNK):
            piece = slice(at, at + _GATHER_CHUNK)
            if table.shape[1] == 1:
                table[:, 0].take(row[piece], out=out[block, piece, 0], mode="clip")
            else:
                table.take(row[piece], axis=0, out=out[block, piece], mode="clip")
    return torch.from_numpy(out).view(lut.dtype)
