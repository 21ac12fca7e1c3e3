"""The palettized tensor: a weight as indices into look-up tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palette_core._common.pytrees import exchanged
from palette_core.errors import IncompatibleShapeError
from palette_core.tensors.codebook import Codebook, dequantize_lut, gather_entries
from palette_core.tensors.layout import BlockLayout, Shape
from palette_core.tensors.nonzeros import codes_in_use, merged
from palette_core.tensors.packing import pack_indices
from palette_core.tensors.scales import apply_scale, fits_shape


@dataclass(frozen=True)
class PalettizedTensor:
    """A weight as indices into look-up tables. Independent of any model.

    Attributes:
        indices: uint8, the weight's shape with ``axis`` divided by the vector length D.
        lut: ``[*grid, K, D]`` with ``K = 2 ** n_bits``; in the weight's dtype, or quantized.
        n_bits: bits per index, 1 to 8.
        axis: the axis of the weight along which the D values of an entry lie.
        dtype: floating dtype of the decoded weight.
        lut_scale: ``[*grid, 1, 1]`` float32 where the LUT is quantized, else None.
        lut_zero_point: ``[*grid, 1, 1]`` in the LUT's dtype, or None.
        scale: factor per output channel, or per block of its inputs (`scales`): of the weight's
            rank, its extents divide the weight's; in ``dtype`` or float16; or None.
        mask: bool, of the weight's shape: False where the weight is exactly zero, which no entry
            stands for then, and the index is of no account (and 0). None is True everywhere.
            With a mask, vectors are D elements of a block that follow each other where it is True,
            row by row: the first indices of each block stand for them, the others are 0.
    """

    indices: Tensor
    lut: Tensor
    n_bits: int
    axis: int
    dtype: torch.dtype
    lut_scale: Tensor | None = None
    lut_zero_point: Tensor | None = None
    scale: Tensor | None = None
    mask: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle 8-bit floats as bytes: torch's own pickles of them cannot be read."""
        fields = vars(self).copy()
        if self.lut.dtype.is_floating_point and self.lut.dtype.itemsize == 1:
            fields["lut"] = self.lut.view(torch.uint8)
        return _unpickled, (fields, self.lut.dtype)

    @property
    def cluster_dim(self) -> int:
        """D, the number of values in one entry."""
        return self.lut.shape[-1]

    @property
    def grid(self) -> Shape:
        """Number of LUTs along each axis of the weight."""
        return tuple(self.lut.shape[:-2])

    @property
    def shape(self) -> Shape:
        """Shape of the decoded weight."""
        shape = list(self.indices.shape)
        if 0 <= self.axis < len(shape):
            shape[self.axis] *= self.cluster_dim
        return tuple(shape)

    @property
    def layout(self) -> BlockLayout:
        """The layout that shape, grid and vector axis imply."""
        shape, grid = self.shape, self.grid
        if any(s % g for s, g in zip(shape, grid, strict=True)):
            raise IncompatibleShapeError(f"a grid of {grid} does not divide {shape}")
        block = tuple(s // g for s, g in zip(shape, grid, strict=True))
        return BlockLayout(shape, block, self.cluster_dim, self.axis)

    def check(self) -> None:
        """Check that the parts fit each other, and that tables and scales are finite.

        Raises:
            ValueError: naming the part that does not fit, or is not finite.
        """
        rank, grid, lut = len(self.indices.shape), self.grid, self.lut
        if not 0 <= self.axis < rank:
            raise ValueError(f"axis {self.axis} does not exist in indices of {rank} axes")
        if lut.dim() != rank + 2 or lut.shape[-2] != 1 << self.n_bits or 0 in lut.shape:
            raise ValueError(
                f"lut has shape {tuple(lut.shape)}, expected {rank} axes, then {1 << self.n_bits} "
                "entries and their length"
            )
        _ = self.layout  # raises where the grid does not divide the shape
        quantized, zero, scale = self.lut_scale is not None, self.lut_zero_point, self.scale
        if not self.dtype.is_floating_point or (lut.dtype != self.dtype and not quantized):
            raise ValueError(f"lut is {lut.dtype} for a weight of {self.dtype}, and has no scale")
        if quantized and not _holds_entries(lut.dtype):
            raise ValueError(f"lut is {lut.dtype}, expected one byte, an integer or a float")
        if self.lut_scale is not None and self.lut_scale.dtype is not torch.float32:
            raise ValueError(f"lut_scale is {self.lut_scale.dtype}, expected torch.float32")
        for name, part in (("lut_scale", self.lut_scale), ("lut_zero_point", zero)):
            if part is not None and part.shape != (*grid, 1, 1):
                raise ValueError(f"{name} has shape {tuple(part.shape)}, expected {(*grid, 1, 1)}")
        if zero is not None and (not quantized or zero.dtype != lut.dtype):
            raise ValueError(f"lut_zero_point is {zero.dtype} for a lut of {lut.dtype}")
        if scale is not None and (
            scale.dtype not in (self.dtype, torch.float16)
            or self.dtype.itemsize < scale.dtype.itemsize
            or not fits_shape(tuple(scale.shape), self.shape)
        ):
            raise ValueError(
                f"scale is {scale.dtype} of shape {tuple(scale.shape)}, expected {self.dtype} or "
                f"torch.float16 and extents that divide {self.shape}"
            )
        for name, part in (("lut", lut), ("lut_scale", self.lut_scale), ("scale", scale)):
            if part is not None:
                check_values(name, part)
        mask = self.mask
        if mask is not None and (mask.dtype is not torch.bool or mask.shape != self.shape):
            raise ValueError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}, expected {torch.bool} of "
                f"shape {self.shape}"
            )

    @classmethod
    def from_codebook(
        cls,
        codebook: Codebook,
        layout: BlockLayout,
        *,
        n_bits: int,
        dtype: torch.dtype,
        scale: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> PalettizedTensor:
        """Lay a codebook of ``layout``'s blocks out on the grid; the LUT is cast to ``dtype``."""
        shape = layout.lut_shape(codebook.lut.shape[1])
        ones = (*layout.grid, 1, 1)
        indices = layout.merge_codes(codebook.codes).contiguous()
        quantized = codebook.quantized
        if quantized is None:
            lut = codebook.lut.to(dtype).reshape(shape)
            return cls(indices, lut, n_bits, layout.vector_axis, dtype, scale=scale, mask=mask)
        zero = quantized.zero_point
        return cls(
            indices,
            quantized.values.reshape(shape),
            n_bits,
            layout.vector_axis,
            dtype,
            lut_scale=quantized.scale.to(torch.float32).reshape(ones),
            lut_zero_point=None if zero is None else zero.reshape(ones),
            scale=scale,
            mask=mask,
        )

    def codebook(self) -> Codebook:
        """Return LUT and codes by block: ``[B, K, D]`` as floats, and ``[B, N]``."""
        entries = dequantize_lut(self.lut, self.lut_scale, self.lut_zero_point).to(self.dtype)
        codes = self.layout.split_indices(self.indices)
        return Codebook(entries.reshape(-1, *self.lut.shape[-2:]), codes)

    def decode(self) -> Tensor:
        """Return the dense weight: LUT dequantized in float32, cast, gathered, scaled, masked."""
        weight = merged(self.codebook().decode(), self.mask, self.layout)
        if self.scale is not None:
            weight = apply_scale(weight, self.scale)
        return weight if self.mask is None else torch.where(self.mask, weight, 0.0)

    def picked_entries(self) -> Tensor | None:
        """Return the 8-bit entries that the indices pick, where these take as many bits.

        In the LUT's dtype and of the weight's shape: a weight without a table, to be shifted and
        scaled as the LUT is. None with fewer bits, vectors, tables of floats, or a mask.
        """
        if (
            self.n_bits < 8
            or self.cluster_dim > 1
            or self.lut_scale is None
            or self.mask is not None
        ):
            return None
        # By bytes: not every device gathers 8-bit floats.
        table = self.lut.view(torch.uint8).reshape(-1, *self.lut.shape[-2:])
        picked = gather_entries(table, self.layout.split_indices(self.indices))
        return self.layout.merge(picked).contiguous().view(self.lut.dtype)

    def stored_indices(self, *, by_block: bool = False) -> Tensor:
        """Return the indices that stand for something, 1-D.

        Args:
            by_block: one block after the other, in the order of `turns_of`. Otherwise indices of
                scalars come row by row, whatever the blocks.
        """
        if self.mask is None:
            return self.indices.reshape(-1)
        if self.cluster_dim == 1 and not by_block:
            return self.indices[self.mask]
        layout = self.layout
        return layout.split_indices(self.indices)[codes_in_use(self.mask, layout)]

    def packed_indices(self) -> Tensor:
        """Return the indices as a dense little-endian bit stream; see `packing`."""
        return pack_indices(self.indices, self.n_bits)

    def size_in_bits(self) -> int:
        """Bits of indices, LUTs, scales and zero points, and of the mask; nothing else."""
        tables = (self.lut, self.lut_scale, self.lut_zero_point, self.scale)
        count, masked = self.indices.numel(), 0
        if self.mask is not None:
            count = int(codes_in_use(self.mask, self.layout).sum())
            masked = self.mask.numel()
        return (
            count * self.n_bits
            + masked
            + sum(t.numel() * t.element_size() * 8 for t in tables if t is not None)
        )

    def dense_size_in_bits(self) -> int:
        """Bits of the dense weight in ``dtype``."""
        return math.prod(self.shape) * self.dtype.itemsize * 8

    def to(self, device: torch.device | str) -> PalettizedTensor:
        """Return the same tensor with every part on ``device``."""
        device = torch.device(device)
        parts = [part for part in vars(self).values() if isinstance(part, Tensor)]
        if all(part.device == device for part in parts):
            return self
        moved: PalettizedTensor = exchanged(lambda part: part.to(device), self)
        return moved


def check_values(name: str, table: Tensor) -> None:
    """Refuse look-up tables and scales that are no numbers.

    Raises:
        ValueError: some are NaN or infinite.
    """
    if table.is_meta or not table.dtype.is_floating_point:
        return
    wide = table.float() if table.dtype.itemsize == 1 else table  # 8-bit floats know no isfinite
    if not bool(torch.isfinite(wide).all()):
        raise ValueError(f"{name} has NaN or infinite values")


def _holds_entries(dtype: torch.dtype) -> bool:
    return dtype.itemsize == 1 and dtype is not torch.bool


def _unpickled(fields: dict[str, Any], lut_dtype: torch.dtype) -> PalettizedTensor:
    return PalettizedTensor(**{**fields, "lut": fields["lut"].view(lut_dtype)})
