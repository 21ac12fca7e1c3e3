"""View of one palettized weight: distributions and look-up tables, small enough for a report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self, final

import torch
from torch import Tensor

from palette_core._common.pytrees import copied
from palette_core.tensors.codebook import dequantize_lut
from palette_core.tensors.palettized import PalettizedTensor

_LOOKED_AT = 1 << 13  # weights, of rows that lie evenly spaced
_KEPT = 1 << 16  # most that are kept until they are looked at
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


@final
class LateView:
    """View that is made when somebody asks for it: nobody looks at most reports.

    Two are equal where their views are; pickled and copied it is the view.
    """

    def __init__(self, make: Callable[[], WeightView]) -> None:
        self._make = make
        self._made: WeightView | None = None

    @property
    def made(self) -> WeightView:
        """The view."""
        if self._made is None:
            self._made = self._make()
            self._make = _is_made  # lets go of the rows
        return self._made

    @classmethod
    def of(cls, view: WeightView) -> Self:
        """Hold a view that is there."""
        late = cls(_is_made)
        late._made = view
        return late

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> Self | None:
        """Hold what `WeightView.to_dict` returned, where it is one."""
        return None if values is None else cls.of(WeightView.from_dict(values))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LateView) and self.made == other.made

    def __hash__(self) -> int:
        return hash(self.made)

    def __reduce__(self) -> tuple[Any, ...]:
        return LateView.of, (self.made,)


def _is_made() -> WeightView:
    raise AssertionError("the view is made")


@torch.no_grad()
def view_of(weight: Tensor, palettized: PalettizedTensor) -> LateView | None:
    """Keep what is to be looked at of a weight and what stands for it; None without elements.

    That is a copy of some rows, and neither of the arguments.

    Args:
        weight: floating and finite, on any device.
        palettized: what stands for it, on the same.
    """
    if not weight.numel() or weight.is_meta:
        return None
    weight = weight.detach()
    some, its = _evenly_spaced(weight, palettized)
    # A single table is kept with the rows already.
    tables = None if _is_plain_table(palettized) else _tables(palettized)
    if some.numel() > _KEPT:
        return LateView.of(_looked_at(some, its, tables))
    if some is weight:
        some, its = weight.clone(), copied(palettized)
    return LateView(partial(_looked_at, some, its, tables))


@torch.no_grad()
def _looked_at(
    some: Tensor, its: PalettizedTensor, tables: tuple[Tensor, int] | None
) -> WeightView:
    entries, count = _tables(its) if tables is None else tables
    dense, decoded = some.double().reshape(-1), its.decode().double().reshape(-1)
    gaps = decoded - dense
    errors = Distribution.of(gaps.cpu()) if bool(gaps.any()) else None
    rows = tuple(tuple(_rounded(x) for x in row) for row in entries.double().sort().values.tolist())
    return WeightView(dense.numel(), Distribution.of(dense.cpu()), errors, rows, count)


def _evenly_spaced(weight: Tensor, palettized: PalettizedTensor) -> tuple[Tensor, PalettizedTensor]:
    """Copy evenly spaced rows, each with the look-up tables of its own; all of a small one."""
    shape, dim = palettized.shape, palettized.cluster_dim
    unit = dim if palettized.axis == 0 else 1  # rows that decode together
    units = shape[0] // unit if shape else 1
    wanted = max(1, _LOOKED_AT * units // max(1, weight.numel()))
    if wanted >= units or (palettized.mask is not None and dim > 1):
        return weight, palettized
    firsts = torch.arange(wanted, device=weight.device) * units // wanted * unit
    rows = firsts
    if unit > 1:
        rows = (firsts[:, None] + torch.arange(unit, device=weight.device)).reshape(-1)

    def of(places: Tensor, part: Tensor | None, count: int) -> Tensor | None:
        if part is None:
            return None
        run = count // part.shape[0]  # rows that have it together
        if run == count:
            return part.clone()
        return part.index_select(0, places if run == 1 else places // run)

    lut = of(firsts, palettized.lut, shape[0])
    indices = of(firsts if unit == 1 else firsts // unit, palettized.indices, units)
    assert indices is not None
    assert lut is not None
    some = PalettizedTensor(
        indices,
        lut,
        palettized.n_bits,
        palettized.axis,
        palettized.dtype,
        of(firsts, palettized.lut_scale, shape[0]),
        of(firsts, palettized.lut_zero_point, shape[0]),
        of(rows, palettized.scale, shape[0]),
        None if palettized.mask is None else palettized.mask.index_select(0, rows),
    )
    return weight.index_select(0, rows), some


def _is_plain_table(palettized: PalettizedTensor) -> bool:
    """Return whether one table, without factors, stands for all of a weight."""
    return palettized.scale is None and math.prod(palettized.grid) == 1


def _tables(palettized: PalettizedTensor) -> tuple[Tensor, int]:
    """Return entries of evenly spaced tables, float64, one a row, and how many tables there are."""
    lut = palettized.lut
    size, count = math.prod(lut.shape[-2:]), math.prod(lut.shape[:-2])
    kept = min(count, _TABLES, max(1, _ENTRIES // size))
    which = torch.arange(kept, device=lut.device) * count // kept if kept < count else None

    def chosen(part: Tensor | None) -> Tensor | None:
        if part is None:
            return None
        rows = part.reshape(count, *part.shape[-2:])
        return rows if which is None else rows[which]

    some = chosen(lut)
    assert some is not None
    entries = dequantize_lut(some, chosen(palettized.lut_scale), chosen(palettized.lut_zero_point))
    entries = entries.to(palettized.dtype).to(torch.float64, copy=True).reshape(kept, size)
    if palettized.scale is not None:
        entries *= palettized.scale.double().abs().median()
    return entries, count


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
