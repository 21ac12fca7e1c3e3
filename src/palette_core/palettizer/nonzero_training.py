"""Training of sparse weights: strategies see the nonzeros alone, as a weight of two axes."""

from __future__ import annotations

from torch import Tensor

from palette_core.tensors.nonzeros import Nonzeros
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.scales import apply_scale, divide_by_scale


def nonzeros_alone(
    weight: Tensor, palettized: PalettizedTensor, nonzeros: Nonzeros
) -> tuple[Tensor, PalettizedTensor]:
    """Return the nonzeros of a weight and of its palette: ``[B, M]``, a row for each table.

    Channel scales are divided out of both.
    """
    layout, scale = palettized.layout, palettized.scale
    if scale is not None:
        weight = divide_by_scale(weight, scale)
    codes = nonzeros.take_codes(layout.split_indices(palettized.indices))

    def by_row(part: Tensor | None) -> Tensor | None:
        return None if part is None else part.reshape(-1, 1, *part.shape[-2:])

    lut = by_row(palettized.lut)
    assert lut is not None
    alone = PalettizedTensor(
        codes,
        lut,
        palettized.n_bits,
        1,
        palettized.dtype,
        by_row(palettized.lut_scale),
        by_row(palettized.lut_zero_point),
    )
    return nonzeros.take(layout.scalars.split(weight)).flatten(1), alone


def whole(made: Tensor, palettized: PalettizedTensor, nonzeros: Nonzeros) -> Tensor:
    """Return the weight whose nonzeros ``made`` ``[B, M]`` holds, for autograd to follow."""
    weight = palettized.layout.scalars.merge(nonzeros.put(made[..., None]))
    return weight if palettized.scale is None else apply_scale(weight, palettized.scale)


def whole_indices(indices: Tensor, palettized: PalettizedTensor, nonzeros: Nonzeros) -> Tensor:
    """Return the indices of the weight, of those of its nonzeros ``[B, M / D]``."""
    return palettized.layout.merge_codes(nonzeros.put_codes(indices))
