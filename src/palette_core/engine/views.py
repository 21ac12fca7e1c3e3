"""View of one palettized weight: distributions and look-up tables, small enough for a report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from palette_core.tensors.codebook import dequantize_lut
from palette_core.tensors.palettized import PalettizedTensor

_LOOKED_AT = 1 << 13  # weights, of rows that lie evenly spaced
_BINS = 64
_WIDE = 6.0  # standard deviations; what lies further out is only counted
_ENTRIES, _TABLES = 256, 24  # kept of all look-up tables
_DIGITS = 5


@dataclass(frozen=True)
class Distribution:
    """Histogram of equal bins.

    Attributes:
        low: where the first bin begins.
        high: where the last one ends.
        counts: by bin.
        outside: values below and above.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    outside: tuple[int, int]

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """Count finite values, 1-D float64, of which there are some."""
        least, most = (float(end) for end in torch.aminmax(values))
        unit = max(-least, most, 1e-300)
        if 1e-100 < unit < 1e100:
            unit = 1.0
        else:
            values = values / unit  # squares stay in range
            least, most = least / unit, most / unit
        middle, spread = float(values.mean()), float(values.std(correction=0))
        low, high = max(least, middle - _WIDE * spread), min(most, middle + _WIDE * spread)
        if not low < high:
            by = 1e-3 * max(-least, most, 1e-300)
            low, high = middle - by, middle + by
        counts = tuple(int(count) for count in torch.histc(values, _BINS, low, high).tolist())
        below = int((values < low).sum()) if least < low else 0
        above = values.numel() - sum(counts) - below if most > high else 0
        return cls(_rounded(low * unit), _rounded(high * unit), counts, (below, above))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make one of its plain JSON values."""
        below, above = values["outside"]
        counts = tuple(int(count) for count in values["counts"])
        return cls(float(values["low"]), float(values["high"]), counts, (int(below), int(above)))


@dataclass(frozen=True)
class WeightView:
    """View of a weight and of the palette that stands for it.

    Attributes:
        looked_at: weights that were counted: all, or those of evenly spaced rows.
        weights: of the dense weight.
        errors: of decoded less dense; None where it is exact.
        tables: entries of evenly spaced look-up tables in ascending order, as they decode at the
            median scale; of entries that are vectors, all their values.
        n_tables: how many tables there are.
    """

    looked_at: int
    weights: Distribution
    errors: Distribution | None
    tables: tuple[tuple[float, ...], ...]
    n_tables: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make one of its plain JSON values."""
        errors = values["errors"]
        return cls(
            int(values["looked_at"]),
            Distribution.from_dict(values["weights"]),
            None if errors is None else Distribution.from_dict(errors),
            tuple(tuple(float(x) for x in table) for table in values["tables"]),
            int(values["n_tables"]),
        )


def view_of(weight: Tensor, palettized: PalettizedTensor) -> WeightView | None:
    """Look at a weight and what stands for it; None where it has no element.

    Args:
        weight: floating and finite, on any device.
        palettized: what stands for it, on the same.
    """
    if not weight.numel() or weight.is_meta:
        return None
    with torch.no_grad():
        some, its = _evenly_spaced(weight.detach(), palettized)
        dense, decoded = some.double().reshape(-1), its.decode().double().reshape(-1)
        gaps = decoded - dense
        errors = Distribution.of(gaps.cpu()) if bool(gaps.any()) else None
        tables, count = _tables(palettized)
        return WeightView(dense.numel(), Distribution.of(dense.cpu()), errors, tables, count)


def _evenly_spaced(weight: Tensor, palettized: PalettizedTensor) -> tuple[Tensor, PalettizedTensor]:
    """Return evenly spaced rows, each with the look-up tables of its own, or all of a small one."""
    shape, dim = palettized.shape, palettized.cluster_dim
    unit = dim if palettized.axis == 0 else 1  # rows that decode together
    units = shape[0] // unit if shape else 1
    wanted = max(1, _LOOKED_AT * units // max(1, weight.numel()))
    if wanted >= units or (palettized.mask is not None and dim > 1):
        return weight, palettized
    firsts = torch.arange(wanted, device=weight.device) * units // wanted * unit
    rows = (firsts[:, None] + torch.arange(unit, device=weight.device)).reshape(-1)

    def of_units(part: Tensor | None) -> Tensor | None:
        if part is None or part.shape[0] == 1:
            return part
        return part[firsts // (shape[0] // part.shape[0])]

    lut = of_units(palettized.lut)
    assert lut is not None
    scale = palettized.scale
    if scale is not None and scale.shape[0] > 1:
        scale = scale[rows // (shape[0] // scale.shape[0])]
    some = replace(
        palettized,
        indices=palettized.indices[firsts // unit if unit > 1 else rows],
        lut=lut,
        lut_scale=of_units(palettized.lut_scale),
        lut_zero_point=of_units(palettized.lut_zero_point),
        scale=scale,
        mask=None if palettized.mask is None else palettized.mask[rows],
    )
    return weight[rows], some


def _tables(palettized: PalettizedTensor) -> tuple[tuple[tuple[float, ...], ...], int]:
    """Return entries of evenly spaced tables, and how many tables there are."""
    lut = palettized.lut
    size, count = math.prod(lut.shape[-2:]), math.prod(lut.shape[:-2])
    kept = min(count, _TABLES, max(1, _ENTRIES // size))
    which = torch.arange(kept, device=lut.device) * count // kept

    def chosen(part: Tensor | None) -> Tensor | None:
        return None if part is None else part.reshape(count, *part.shape[-2:])[which]

    some = chosen(lut)
    assert some is not None
    entries = dequantize_lut(some, chosen(palettized.lut_scale), chosen(palettized.lut_zero_point))
    entries = entries.to(palettized.dtype).double().reshape(kept, size).sort().values
    if palettized.scale is not None:
        entries = entries * float(palettized.scale.double().abs().median())
    return tuple(tuple(_rounded(x) for x in row) for row in entries.tolist()), count


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
