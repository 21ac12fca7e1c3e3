"""Options and constants of ``kmeans_vector``, apart from the code: reading them costs nothing."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field

SWAP_TOL = 1e-4  # a swap must lower the cost by this fraction
START_TOL = 3e-4  # on a sample, a start is judged when its cost falls by less than this
CELLS_TOL = 0.05  # on cells, iteration goes on to this part of its tolerance
SAMPLE_TOL = 1e-4  # on a sample, whose noise is larger, it may end sooner
_SAMPLE = 16384  # points for seeding, at least
_SAMPLE_PER_ENTRY = 64
_FIRST = 2048  # points of a sample to start with, at least
_FIRST_PER_ENTRY = 128
_TRIES_OF_ENTRIES = 48
_TRIED_DISTANCES = 1 << 19
_MOST_TRIES = 32
_MOST_STEPS = 1_000_000_000  # kernels count in 64 bits


def sample_size(n_entries: int) -> int:
    """Return how many points of a block seeding looks at."""
    return max(_SAMPLE, _SAMPLE_PER_ENTRY * n_entries)


def first_step(n_entries: int) -> int:
    """Return which points of a sample to start with: 1 for all, 2 for every other one, …."""
    return max(1, sample_size(n_entries) // max(_FIRST, _FIRST_PER_ENTRY * n_entries))


def trials_of(trials: int | None, n_entries: int) -> int:
    """Return how many points to try for each entry in seeding."""
    return 2 + int(math.log(n_entries)) if trials is None else trials


def tries(restarts: int, n_points: int, n_entries: int) -> int:
    """Return how many seedings to try: more where one costs little, in small blocks and tables."""
    affordable = min(_MOST_TRIES, _TRIED_DISTANCES // (max(1, n_points) * n_entries))
    return max(restarts, _TRIES_OF_ENTRIES // n_entries, affordable)


class KMeansVectorOptions(BaseModel):
    """Options of the built-in vector k-means.

    Attributes:
        restarts: how many seedings are tried at least; the best goes on.
        trials: points tried for each entry in seeding, of which the best is taken; None tries
            2 + ⌊ln K⌋ for K entries.
        swaps: how often entries that help little are tried where points are served worst.
        max_iter: most iterations of Lloyd's algorithm, on the sample and on the whole block.
        tol: iteration stops when the cost falls by less than this fraction.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    restarts: int = Field(default=2, ge=1, le=1000, description="seedings tried")
    trials: int | None = Field(
        default=None, ge=1, le=1000, description="points tried for each entry in seeding"
    )
    swaps: int = Field(
        default=20, ge=0, le=_MOST_STEPS, description="attempts to move a little-used entry"
    )
    max_iter: int = Field(default=300, ge=1, le=_MOST_STEPS, description="most iterations")
    tol: float = Field(
        default=2e-5, ge=0.0, allow_inf_nan=False, description="relative gain at which to stop"
    )
