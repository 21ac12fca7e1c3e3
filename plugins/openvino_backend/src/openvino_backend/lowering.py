"""Lowering of a palettized weight in an OpenVINO model.

Indices are a constant of their own width, which has to be converted before it is used to gather.
Four forms, each with the values of `PalettizedTensor.decode` in its order and its dtypes:

* tables of floats are looked up as they are; those of 8-bit floats are written as what their
  entries stand for, since the runtime does not fold look-ups behind such constants;
* tables of 8-bit integers of a linear layer are looked up first, then converted and scaled, if an
  output channel has one scale: the runtime keeps the integers, and computes in 8 bits. Elsewhere
  they are written as what their entries stand for; the runtime mistakes scales by input channel
  of a square weight for those by output channel;
* where rows of a weight are gathered, rows of its *indices* are, and entries after: the weight is
  never decoded whole. Entries are written as what they stand for;
* sparse weights are listed, see `sparse`, whatever uses them.

Scales by block of inputs multiply a weight that is cut into these blocks for that; the runtime
keeps it in floats, whatever its tables are of.
"""

from __future__ import annotations

import torch
from openvino import opset16 as op
from torch import Tensor

from openvino_backend.nodes import TYPES, Constants, Output, integers, scalar
from openvino_backend.sparse import sparse
from openvino_backend.weights import Weight
from palette_core.tensors import QuantizedLut


class Lowering:
    """The operations of one weight; what two of its uses share is written once."""

    def __init__(self, weight: Weight, constants: Constants, *, exact_scales: bool) -> None:
        self._weight, self._constants, self._exact = weight, constants, exact_scales
        shape = weight.index_shape
        if weight.mask is not None:
            shape = (int(weight.listed.sum()),)
        self._indices = constants.indices(weight.packed, shape, weight.n_bits)

    def dense(self, *, scaled_late: bool) -> Output:
        """Return the whole weight.

        Args:
            scaled_late: look integers up first and scale them after, where each output channel
                has one scale.
        """
        weight = self._weight
        if weight.mask is not None:
            return self._times_channels(
                sparse(weight, self._indices, self._entries(), self._constants)
            )
        by_row, integer = weight.grid[0] == weight.n_blocks, not weight.lut.dtype.is_floating_point
        late = scaled_late and by_row and integer and not self._scaled_by_block()
        if weight.lut_scale is None or not late:
            return self._times_channels(self._looked_up(self._entries()))
        values, zero = _shifted(weight)
        found = op.convert(self._looked_up(self._constants.tensor(values)), "f32")
        if zero is not None:
            wide = self._constants.tensor(_by_row(zero, weight.shape))
            found = op.subtract(found, op.convert(wide, "f32"))
        scale = _by_row(weight.lut_scale, weight.shape)
        merged = None if self._exact else _merged(scale, weight)
        found = op.multiply(found, self._constants.tensor(scale if merged is None else merged))
        if weight.dtype is not torch.float32:
            found = op.convert(found, TYPES[weight.dtype])
        return found.output(0) if merged is not None else self._times_channels(found.output(0))

    def rows(self, tokens: Output) -> Output:
        """Return the rows of a matrix that ``tokens`` are: int32 of any shape.

        The entry of an index is at ``table * K + index`` in the tables put end to end. Vectors
        along the rows are taken apart: their values are at ``(table * K + index) * D + value``.
        """
        weight = self._weight
        vertical = weight.axis == 0 and weight.dim > 1
        row = op.divide(tokens, scalar(weight.dim)) if vertical else tokens
        codes = op.gather(op.convert(self._indices, "u8"), row, integers(0))
        at = op.convert(codes, "i32")
        for first in self._first_entries(row):
            at = op.add(at, first)
        table = self._entries()
        if vertical:
            value = op.floor_mod(tokens, scalar(weight.dim))
            at = op.multiply(at, scalar(weight.dim))
            at = op.add(at, op.unsqueeze(value, integers(-1)))
        wide = weight.dim > 1 and not vertical
        table = op.reshape(table, integers(-1, *([weight.dim] if wide else [])), False)
        found = op.gather(table, at, integers(0))
        if wide:
            # The two last axes become one, whatever stands before them.
            lengths = op.concat([op.shape_of(tokens, "i64"), integers(weight.shape[1])], 0)
            found = op.reshape(found, lengths, False)
        return self._times_channels(found.output(0), tokens)

    def rows_can_be_gathered(self) -> bool:
        """Return whether `rows` has a form for the weight."""
        return len(self._weight.shape) == 2 and self._weight.mask is None

    # --- steps ----------------------------------------------------------------------------------

    def _entries(self) -> Output:
        """Return the tables as what they stand for, in the dtype of the weight."""
        weight = self._weight
        lut, scale, zero = weight.lut, weight.lut_scale, weight.lut_zero_point
        if scale is not None:
            zero = None if zero is None else zero[..., None, None]
            lut = QuantizedLut(lut, scale[..., None, None], zero).dequantize()
        return self._constants.tensor(lut.to(weight.dtype))

    def _looked_up(self, table: Output) -> Output:
        """Return the entries of ``table``, in whatever shape it is, put together to a weight."""
        weight = self._weight
        codes, entry = op.convert(self._indices, "i32"), [weight.dim] if weight.dim > 1 else []
        blocks, index_shape = weight.n_blocks, weight.index_shape
        if weight.grid[0] == blocks:  # rows of one table follow each other
            table = op.reshape(table, integers(blocks, -1, *entry), False)
            codes = op.reshape(codes, integers(blocks, -1), False)
            found = op.gather(table, codes, integers(1), 1)
        else:
            first = torch.arange(blocks, dtype=torch.int32) * weight.n_entries
            first = first.reshape([n for g in weight.grid for n in (g, 1)])
            codes = op.add(
                op.reshape(codes, integers(*_cut(index_shape, weight.grid)), False),
                self._constants.tensor(first),
            )
            found = op.gather(op.reshape(table, integers(-1, *entry), False), codes, integers(0))
        if entry and weight.axis < len(index_shape) - 1:
            found = op.reshape(found, integers(*index_shape, *entry), False)
            axes = list(range(len(index_shape)))
            axes.insert(weight.axis + 1, len(index_shape))
            found = op.transpose(found, integers(*axes))
        return op.reshape(found, integers(*weight.shape), False).output(0)

    def _first_entries(self, row: Output) -> list[Output]:
        """Return what to add to indices of ``row`` for their tables: by row, by column."""
        weight, found = self._weight, []
        down, across = weight.grid
        step = across * weight.n_entries
        if down > 1:
            table = op.divide(row, scalar(weight.index_shape[0] // down))
            found.append(op.unsqueeze(op.multiply(table, scalar(step)), integers(-1)))
        if across > 1:
            columns = torch.arange(across, dtype=torch.int32) * weight.n_entries
            found.append(
                self._constants.tensor(columns.repeat_interleave(weight.index_shape[1] // across))
            )
        return found

    def _scaled_by_block(self) -> bool:
        scale, shape = self._weight.scale, self._weight.shape
        return scale is not None and any(
            extent not in (1, whole) for extent, whole in zip(scale.shape, shape, strict=True)
        )

    def _times_channels(self, found: Output, tokens: Output | None = None) -> Output:
        """Return a weight, or the rows of a matrix that ``tokens`` are, times its scales."""
        scale, shape = self._weight.scale, self._weight.shape
        if scale is None:
            return found
        factors = self._constants.tensor(scale.to(self._weight.dtype))
        if tokens is not None:
            return self._rows_times(found, factors, tokens)
        if not self._scaled_by_block():
            return op.multiply(found, factors).output(0)
        cut, extents = [], []
        for extent, whole in zip(scale.shape, shape, strict=True):
            divided = extent not in (1, whole)
            cut += [extent, whole // extent] if divided else [whole]
            extents += [extent, 1] if divided else [extent]
        found = op.reshape(found, integers(*cut), False)
        found = op.multiply(found, op.reshape(factors, integers(*extents), False))
        return op.reshape(found, integers(*shape), False).output(0)

    def _rows_times(self, found: Output, factors: Output, tokens: Output) -> Output:
        assert self._weight.scale is not None
        down, across = self._weight.scale.shape
        rows, width = self._weight.shape
        row = tokens if down in (1, rows) else op.divide(tokens, scalar(rows // down))
        factors = (
            op.gather(factors, row, integers(0)) if down > 1 else op.squeeze(factors, integers(0))
        )
        if across in (1, width):
            return op.multiply(found, factors).output(0)
        lengths = op.shape_of(tokens, "i64")
        cut = op.concat([lengths, integers(across, width // across)], 0)
        factors = op.unsqueeze(factors, integers(-1))
        found = op.multiply(op.reshape(found, cut, False), factors)
        whole = op.concat([lengths, integers(width)], 0)
        return op.reshape(found, whole, False).output(0)


def _shifted(weight: Weight) -> tuple[Tensor, Tensor | None]:
    """Return values and zero points; no zero points where their differences are 8-bit integers.

    The runtime computes in 8 bits without a zero point faster than with one.
    """
    lut, zero = weight.lut, weight.lut_zero_point
    if zero is None or lut.dtype.is_floating_point:
        return lut, zero
    difference = lut.to(torch.int16) - zero.to(torch.int16)[..., None, None]
    if difference.min() >= -128 and difference.max() <= 127:
        return difference.to(torch.int8), None
    return lut, zero


def _cut(shape: tuple[int, ...], grid: tuple[int, ...]) -> list[int]:
    """Return tables and what is in one, for each axis in turn."""
    return [size for s, g in zip(shape, grid, strict=True) for size in (g, s // g)]


def _by_row(part: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return one value per table, of tables of rows, repeated for each of their rows."""
    return part if part.numel() == 1 else part.repeat_interleave(shape[0] // part.shape[0], 0)


def _merged(scale: Tensor, weight: Weight) -> Tensor | None:
    """Return both scales in one, or None where there is no second, or rounding would differ."""
    if weight.scale is None or weight.dtype is not torch.float32:
        return None
    merged = scale * weight.scale.float()
    return merged if merged.shape[1:].numel() == 1 else None
