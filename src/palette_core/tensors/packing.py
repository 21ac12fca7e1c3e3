"""Indices of n bits as one dense little-endian bit stream.

Index ``i`` occupies bits ``i*n … i*n+n-1`` of the stream, least significant bit first: what
``numpy.packbits(…, bitorder="little")`` writes, and what Core AI and safetensors readers of
ours read. Works for any n from 1 to 8, on any device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Groups of eight indices handled at once: their 64-bit temporaries stay in the cache.
_CHUNK = 1 << 15


def packed_size(count: int, n_bits: int) -> int:
    """Return how many bytes ``count`` indices of ``n_bits`` bits take."""
    return math.ceil(count * n_bits / 8)


def pack_indices(indices: Tensor, n_bits: int) -> Tensor:
    """Pack a uint8 tensor of any shape into ``packed_size(numel, n_bits)`` bytes (1-D uint8)."""
    flat = indices.reshape(-1)
    if n_bits == 8:
        return flat.contiguous().clone()
    count = flat.numel()
    out = torch.empty(packed_size(count, n_bits), dtype=torch.uint8, device=flat.device)
    if 8 % n_bits == 0:
        return _pack_within_bytes(flat, n_bits, out)
    shifts = torch.arange(8, device=flat.device) * n_bits
    bytes_at = torch.arange(n_bits, device=flat.device) * 8
    for start in range(0, count, _CHUNK * 8):
        part = flat[start : start + _CHUNK * 8].to(torch.int64)
        if part.numel() % 8:
            part = torch.nn.functional.pad(part, (0, 8 - part.numel() % 8))
        words = (part.view(-1, 8) << shifts).sum(dim=1)
        packed = ((words[:, None] >> bytes_at) & 0xFF).to(torch.uint8).reshape(-1)
        at = start // 8 * n_bits
        out[at : at + packed.numel()] = packed[: out.numel() - at]
    return out


def unpack_indices(packed: Tensor, n_bits: int, count: int) -> Tensor:
    """Unpack ``count`` indices (1-D uint8) from the bytes that `pack_indices` made.

    Raises:
        ValueError: ``packed`` has not exactly the bytes that ``count`` indices take.
    """
    if packed.numel() != packed_size(count, n_bits):
        raise ValueError(
            f"{count} indices of {n_bits} bits take {packed_size(count, n_bits)} bytes, "
            f"got {packed.numel()}"
        )
    if n_bits == 8:
        return packed.clone()
    if 8 % n_bits == 0:
        return _unpack_within_bytes(packed, n_bits, count)
    out = torch.empty(count, dtype=torch.uint8, device=packed.device)
    shifts = torch.arange(8, device=packed.device) * n_bits
    bytes_at = torch.arange(n_bits, device=packed.device) * 8
    for start in range(0, packed.numel(), _CHUNK * n_bits):
        part = packed[start : start + _CHUNK * n_bits].to(torch.int64)
        if part.numel() % n_bits:
            part = torch.nn.functional.pad(part, (0, n_bits - part.numel() % n_bits))
        words = (part.view(-1, n_bits) << bytes_at).sum(dim=1)
        codes = ((words[:, None] >> shifts) & ((1 << n_bits) - 1)).to(torch.uint8).reshape(-1)
        at = start // n_bits * 8
        out[at : at + codes.numel()] = codes[: count - at]
    return out


def _pack_within_bytes(flat: Tensor, n_bits: int, out: Tensor) -> Tensor:
    """Pack without temporaries: no index is cut by the end of a byte."""
    each = 8 // n_bits
    whole = flat.numel() // each
    groups = flat[: whole * each].view(whole, each)
    out[:whole] = groups[:, 0]
    for i in range(1, each):
        out[:whole] |= groups[:, i] << (i * n_bits)
    rest = flat[whole * each :]
    if rest.numel():
        out[whole] = sum(int(code) << (i * n_bits) for i, code in enumerate(rest))
    return out


def _unpack_within_bytes(packed: Tensor, n_bits: int, count: int) -> Tensor:
    mask = (1 << n_bits) - 1
    out = torch.empty((packed.numel(), 8 // n_bits), dtype=torch.uint8, device=packed.device)
    for i in range(8 // n_bits):
        torch.bitwise_and(packed >> (i * n_bits), mask, out=out[:, i])
    return out.view(-1)[:count]
