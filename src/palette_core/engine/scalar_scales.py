"""Scales of scalars in host memory, fitted in few passes over the weight.

Tables and factors find each other on a sample of the channels: after a first clustering, each
round tries stretches of every factor, assigns the entries, and moves these to their means. Then
the algorithm makes the table that is kept, and all weights get factors and indices by it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from palette_core.tensors.codebook import Codebook

if TYPE_CHECKING:
    from palette_core.engine.fitted_scales import Cluster, Scaled
    from palette_core.tensors.scale_search import FactorBlocks

_ROUNDS = 12
_LEAST_GAIN = 3e-4  # of the error: with less, a round was the last
_CLEAR = 0.99  # an error on the sample below this share of the range's is taken to be lower
_CLEAR_ON_ALL = 0.995  # the same for all weights, by a table of the sample

# More stretches bring less than 0.2 % of the error.
_WIDE = (1.0, 0.84, 0.92, 1.12)
_NEAR = (1.0, 0.94, 1.06)


def fit_scalar_scales(
    what: Scaled, cluster: Cluster, blocks: FactorBlocks
) -> tuple[Codebook, Tensor]:
    """Return tables, indices and scales; see `fit_scales`.

    Args:
        what: the weight.
        cluster: makes tables and indices.
        blocks: the weight, cut.
    """
    sample = what.sample()
    some = what if sample is None else sample
    part = blocks if sample is None else some.blocks()
    assert part is not None  # a sample of channels is cut as all of them are
    ranges = some.range()
    start = cluster(some, ranges, False)
    first = part.settle(start.lut, ranges)
    scale = _in_turn(some, part, first.means[..., None], ranges, first.error)
    table = cluster(some, scale, True)
    lut = table.lut.to(what.weight.dtype)
    clear = False
    if sample is None:
        near = scale
    else:
        clear = part.settle(lut, scale, means=False).error < _CLEAR * first.error
        near = what.stored(blocks.search(lut, what.range(), _WIDE))
        if table.quantized is None:  # all weights have a say in entries
            table = replace(table, lut=blocks.settle(lut, near).means[..., None])
            lut = table.lut.to(what.weight.dtype)
    scale = what.stored(blocks.search(lut, near, _NEAR))
    settled = blocks.settle(lut, scale, means=False)
    found = replace(table, codes=settled.codes), scale
    if sample is not None and not clear:
        by_range = blocks.settle(start.lut, what.range(), means=False)
        clear = settled.error < _CLEAR_ON_ALL * by_range.error
    if clear:
        return found
    plain = start
    if sample is not None or table.quantized is not None:
        ranges = what.range()
        plain = cluster(what, ranges, True)
    return found if settled.error <= what.error(plain, ranges) else (plain, ranges)


def _in_turn(some: Scaled, part: FactorBlocks, lut: Tensor, scale: Tensor, error: float) -> Tensor:
    stretches: tuple[float, ...] = _WIDE
    for _ in range(_ROUNDS):
        tried = some.stored(part.search(lut, scale, stretches))
        now = part.settle(lut, tried)
        if not now.error < error:
            break
        enough = now.error > error * (1 - _LEAST_GAIN)
        scale, lut, error, stretches = tried, now.means[..., None], now.error, _NEAR
        if enough:
            break
    return scale
