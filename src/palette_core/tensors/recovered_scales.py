"""Scales of a weight that is entries times one factor per channel, in every bit.

A weight that came out of a palette with channel scales holds products that were rounded. Divided by
any factors but the palette's own (or these times a power of two) its channels hold entries that
differ in their last bits, and no table takes them exactly. Products of two channels and two entries
bound the ratios of these entries, and all channels together bound them so narrowly that for hardly
any value of one entry the others are floats as well: all mantissas of it are tried. Float64 has too
many of them; what is found there is right but for a few roundings.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from palette_core.tensors.exact_tables import rounding_ends
from palette_core.tensors.layout import BlockLayout
from palette_core.tensors.matched_entries import matched_entries, unique

_MANTISSA = {torch.float64: 52, torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}
_ROOM = 1 << 24  # products of entries and channels in one problem
_CHUNK = 1 << 19  # mantissas looked at together
_MOST_VECTORS = 64  # entries of several values that are compared with each other
_NEAR = 2.0**-49  # of a float64 weight, by which its products may be off
_MOST_ROUNDS = 64  # of least squares, until all channels are reached
_TINY = 2.0**-1000


def recovered_scales(
    weight: Tensor, layout: BlockLayout, axis: int, n_entries: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what `recovered_scale` finds, and what else is as good.

    The values of vectors across channels are known but for a power of two each. Tables of floats
    hold any of them; one scale for the levels of all values fits where these are near each other.
    """
    found = recovered_scale(weight, layout, axis, n_entries)
    if found is None:
        return
    yield found
    unit, scale = found
    dim = layout.cluster_dim
    if layout.vector_axis != axis:
        return
    shape = [-1 if at == axis else 1 for at in range(weight.dim())]
    for powers in itertools.product((0, 1, -1), repeat=dim - 1):
        factor = torch.tensor([1.0, *(2.0**power for power in powers)], dtype=weight.dtype)
        factor = factor.repeat(weight.shape[axis] // dim).reshape(shape).to(weight.device)
        near = unit * factor, scale / factor
        if any(powers) and torch.equal(near[0] * near[1], weight):
            yield near


def recovered_scale(
    weight: Tensor, layout: BlockLayout, axis: int, n_entries: int
) -> tuple[Tensor, Tensor] | None:
    """Find entries and channel scales whose products are a weight in every bit.

    Args:
        weight: floating; not all are found: float16 and bfloat16 weights may leave several ways to
            match the channels' values. Products are a float64 weight but for `_NEAR` of it.
        layout: of the tables.
        axis: of the output channels.
        n_entries: what a table holds.

    Returns:
        a weight whose blocks hold at most so many distinct points, and the scale, one factor for
        each channel, both in the weight's dtype; or None.
    """
    bits = _MANTISSA.get(weight.dtype)
    if bits is None or (layout.cluster_dim > 1 and n_entries > _MOST_VECTORS):
        return None
    corner = weight[tuple(slice(0, extent) for extent in layout.block)].select(axis, 0)
    if unique(corner).numel() > n_entries * layout.cluster_dim:
        return None  # as nearly every weight that is no palette's
    rows = torch.arange(weight.shape[axis], device="cpu")
    shape = [-1 if at == axis else 1 for at in range(weight.dim())]
    channel = layout.split(rows.reshape(shape).expand(weight.shape))
    points = layout.split(weight.detach().cpu())
    matched = matched_entries(points, channel, n_entries, 2.0 ** -(bits + 1))
    if matched is None:
        return None
    # Blocks that share channels share a gauge; so do the values of vectors within a channel.
    crossing = layout.cluster_dim > 1 and layout.vector_axis == axis
    unit, scale = points.clone(), torch.zeros(len(rows), dtype=weight.dtype)
    part = rows // layout.block[axis] * layout.cluster_dim
    part = part + (rows % layout.cluster_dim if crossing else 0)
    its = part[channel]
    dims = torch.arange(layout.cluster_dim)
    blocks = torch.arange(len(points))[:, None, None]
    entry = (blocks * n_entries + matched[..., None]) * layout.cluster_dim + dims
    for one in unique(its):
        at = its == one
        its_parts = points[at], channel[at], entry[at]
        found = _fitted(*its_parts) if weight.dtype is torch.float64 else _solved(*its_parts, bits)
        if found is None:
            return None
        unit[at], (channels, factors) = found
        scale[channels] = factors
    unit_weight = layout.merge(unit)
    scale = scale.reshape(shape)
    gap = (unit_weight * scale - weight.detach().cpu()).abs()
    near = _NEAR if weight.dtype is torch.float64 else 0.0
    if not bool((gap <= near * weight.detach().cpu().abs()).all()):
        return None
    return unit_weight.to(weight.device), scale.to(weight.device)


_Solved = tuple[Tensor, tuple[Tensor, Tensor]]


def _solved(points: Tensor, channel: Tensor, entry: Tensor, bits: int) -> _Solved | None:
    """Return the entry of each point, and channels with their factors, where products are exact."""
    channels, o = unique(channel, return_inverse=True)
    entries, e = unique(entry, return_inverse=True)
    if len(channels) * len(entries) > _ROOM:
        return None
    values = torch.full((len(channels), len(entries)), math.nan, dtype=points.dtype)
    values[o, e] = points
    sign = values.nan_to_num(0.0).sign().double()
    sign, present = sign.sum(dim=0).sign(), (values != 0) & ~values.isnan()
    used = present.any(dim=0)
    if not bool(used.any()):
        return points, (channels, torch.ones(len(channels), dtype=points.dtype))
    size = values.abs().masked_fill(~present, 1.0)[:, used]
    zero = torch.zeros(len(entries), dtype=points.dtype)
    for tables in _tables(size, present[:, used], bits):
        found = _exact(size, present[:, used], tables)
        if found is not None:
            table, factors = found
            power = 2.0 ** math.floor(math.log2(float(table.max())))
            zero[used] = table / power
            return (zero * sign.to(zero.dtype))[e], (channels, factors * power)
    return None


def _fitted(points: Tensor, channel: Tensor, entry: Tensor) -> _Solved | None:
    """Return the same of float64 by least squares, one channel after the other, as near as it is.

    Channels are reached by entries that they share with one which is.
    """
    channels, o = unique(channel, return_inverse=True)
    entries, e = unique(entry, return_inverse=True)
    if len(channels) * len(entries) > _ROOM:
        return None
    values = torch.zeros((len(channels), len(entries)), dtype=points.dtype)
    values[o, e] = points
    factors, reached = values.new_zeros(len(channels)), 0
    factors[(values != 0).sum(dim=1).argmax()] = 1.0
    table = values[0]
    for _ in range(_MOST_ROUNDS):
        there = (values != 0) * factors[:, None]
        table = (values * there).sum(dim=0) / there.square().sum(dim=0).clamp(min=_TINY)
        there = (values != 0) * table
        factors = (values * there).sum(dim=1) / there.square().sum(dim=1).clamp(min=_TINY)
        if reached == (reached := int(factors.count_nonzero())):
            break
    factors = torch.where((values == 0).all(dim=1), 1.0, factors)
    largest = float(table.abs().max())
    power = 2.0 ** math.floor(math.log2(largest)) if largest > 0 else 1.0
    return (table / power)[e], (channels, factors * power)


def _tables(size: Tensor, present: Tensor, bits: int) -> Iterator[Tensor]:
    """Yield magnitudes of entries ``[T, E]`` with which products of all channels may be right.

    Args:
        size: ``[O, E]`` magnitudes of products.
        present: ``[O, E]`` bool, which of them there are.
        bits: of a mantissa.
    """
    low, high = rounding_ends(size)
    root = int(present.sum(dim=0).argmax())
    both = present & present[:, root : root + 1]
    if not bool(both.any(dim=0).all()):
        return
    least = (low / high[:, root, None]).masked_fill(~both, 0.0).amax(dim=0)
    most = (high / low[:, root, None]).masked_fill(~both, math.inf).amin(dim=0)
    least[root] = most[root] = 1.0
    if bool((least > most).any()):
        return
    middle, half = (least + most) / 2, (most - least) / 2
    order = (half / middle).argsort()
    for begin in range(0, 1 << bits, _CHUNK):
        end = min(1 << bits, begin + _CHUNK)
        first = 1.0 + torch.arange(begin, end, dtype=torch.float64) / (1 << bits)
        for at in order:
            near = first * middle[at]
            gap = (near.to(size.dtype).double() - near).abs()
            first = first[gap <= first * half[at] + near * 2.0**-50]
        if len(first):
            yield (first[:, None] * middle).to(size.dtype)


def _exact(size: Tensor, present: Tensor, tables: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the first of tables ``[T, E]`` whose products are right, and factors ``[O]``."""
    low, high = rounding_ends(size)
    # Channels of many entries first: they tell the most.
    for o in present.sum(dim=1).argsort(descending=True).tolist():
        which = present[o]
        ends = low[o, which], high[o, which]
        right, _ = _factors(size[o, which], *ends, tables[:, which])
        tables = tables[right]
        if not len(tables):
            return None
    factors = []
    for o, which in enumerate(present):
        ends = low[o, which], high[o, which]
        factors.append(_factors(size[o, which], *ends, tables[:1, which])[1])
    return tables[0], torch.cat(factors)


def _factors(size: Tensor, low: Tensor, high: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
    """Return for which tables ``[T, E]`` a channel's products are right, ``[T]``, and by what."""
    if not len(size):
        return torch.ones(len(tables), dtype=torch.bool), tables.new_ones(len(tables))
    wide = tables.double()
    middle = ((low / wide).amax(dim=1) + (high / wide).amin(dim=1)) / 2
    out = middle.to(tables.dtype)
    right = torch.zeros(len(tables), dtype=torch.bool)
    far = torch.tensor(math.inf, dtype=tables.dtype)
    for factor in (out, torch.nextafter(out, far), torch.nextafter(out, -far)):
        now = (tables * factor[:, None] == size).all(dim=1) & ~right
        out = torch.where(now, factor, out)
        right |= now
    return right, out
