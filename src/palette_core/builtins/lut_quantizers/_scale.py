"""The best scale for a table of values, exactly.

Entries x are stored as levels q of a fixed ladder (integers, or the values of an 8-bit float)
times one scale s, and the squared error Σ (x − s·q)² is to be smallest over q and s together.
For a given s the best q is the nearest level; for given q the best s is Σ x·q / Σ q². As 1/s
grows from zero, |q| of each entry climbs the ladder one level at a time, at known places, so
all level assignments that any scale can produce are met in one sorted sweep, with running sums
of x·q and q². The optimum is one of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 1 << 22  # steps of the sweep held at once: bounds the temporaries to some 100 MB
_EQUAL = 1e-13  # relative rounding of the running sums
SMALLEST_SCALE = 2.0**-149  # of float32
LARGEST_SCALE = torch.finfo(torch.float32).max


def best_scale(
    entries: Tensor, ladder: Tensor, up: int, down: int, window: int | None = None
) -> Tensor:
    """Return the scale with the smallest squared error of each table.

    Args:
        entries: ``[B, M]`` float64, largest magnitude of each table at most 1.
        ladder: ``[L]`` float64, ascending, starting with 0: magnitudes of the levels; with one,
            its double is among them, or beyond the last.
        up: how many steps of the ladder positive entries can climb, at most L − 1.
        down: the same for negative entries.
        window: how many steps the highest and the lowest entry can climb together.

    Returns:
        ``[B]`` float64; 0 where every entry is zero or no level can stand for any.
    """
    if entries.device.type == "cpu":
        from palette_core._common.threads import map_threads, slices_of, thread_count
        from palette_core.builtins.lut_quantizers._scale_kernel import sweep

        middle = (ladder[1:] + ladder[:-1]) / 2
        full = entries.new_full(entries.shape[:1], torch.inf)
        if window is not None:
            full = _window_full(entries, middle, window)
        table, ends, found = entries.contiguous().numpy(), full.numpy(), torch.empty_like(full)

        def part(at: slice) -> None:
            made = sweep(table[at], ladder.numpy(), up, down, window or 0, ends[at])
            found[at] = torch.from_numpy(made)

        map_threads(part, slices_of(len(table), -(-len(table) // thread_count())))
        return found
    return sweep_in_torch(entries, ladder, up, down, window)


def sweep_in_torch(
    entries: Tensor, ladder: Tensor, up: int, down: int, window: int | None
) -> Tensor:
    """Return what `best_scale` does, computed where the entries are."""
    blocks, count = entries.shape
    step = max(1, _CHUNK // max(1, count * (ladder.numel() - 1)))
    parts = [
        _sweep(entries[at : at + step], ladder, up, down, window) for at in range(0, blocks, step)
    ]
    return torch.cat(parts) if parts else entries.new_zeros(0)


def _sweep(entries: Tensor, ladder: Tensor, up: int, down: int, window: int | None) -> Tensor:
    size = entries.abs()[..., None]
    steps = torch.arange(1, ladder.numel(), device=entries.device)
    limit = torch.where(entries >= 0, up, down)[..., None]
    usable = (steps <= limit) & (size > 0)
    middle = (ladder[1:] + ladder[:-1]) / 2
    place = torch.where(usable, middle / size, torch.inf).flatten(1)
    product = torch.where(usable, size * (ladder[1:] - ladder[:-1]), 0.0).flatten(1)
    square = torch.where(usable, (ladder[1:] ** 2 - ladder[:-1] ** 2), 0.0).flatten(1)
    order = place.argsort(dim=1, stable=True)
    product = product.gather(1, order).cumsum(1)
    square = square.gather(1, order).cumsum(1)
    safe = torch.where(square > 0, square, 1.0)
    gain = product * product / safe
    if window is not None:
        full = _window_full(entries, middle, window)
        gain = torch.where(place.gather(1, order) < full[:, None], gain, -1.0)
    # Among equals the finest scale: levels stay clear of the smallest, denormal ones.
    good = gain >= gain.amax(dim=1, keepdim=True) * (1 - _EQUAL)
    best = gain.shape[1] - 1 - good.flip(1).to(torch.uint8).argmax(dim=1, keepdim=True)
    return (product.gather(1, best) / safe.gather(1, best)).squeeze(1)


def _window_full(entries: Tensor, middle: Tensor, window: int) -> Tensor:
    """Return where highest and lowest entry would together take one step too many."""
    ends = torch.stack([entries.amax(dim=1).clamp(min=0), -entries.amin(dim=1).clamp(max=0)], 1)
    safe = torch.where(ends > 0, ends, 1.0)[..., None]
    places = torch.where(ends[..., None] > 0, middle / safe, torch.inf).flatten(1)
    both = torch.cat([places, places.new_full((places.shape[0], 1), torch.inf)], 1).sort(dim=1)
    return both.values[:, min(window, both.values.shape[1] - 1)]


def to_scale(scale: Tensor) -> Tensor:
    """Return a positive, finite float32 scale; tables without a scale (all zero) get 1."""
    scale = torch.where(scale > 0, scale, 1.0)
    return scale.clamp(SMALLEST_SCALE, LARGEST_SCALE).to(torch.float32)
