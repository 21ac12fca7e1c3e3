"""What the differential test runs: a covering selection of the cross product of all factors.

The cross product has some ten thousand cases. The selection holds, for any three factors, every
combination of their values at least once (a covering array of strength three, built greedily).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import astuple, dataclass

ALL_BITS = (1, 2, 3, 4, 6, 8)
GRANULARITIES = ("tensor", "0:4", "0:16", "0:32", "1:4", "1:16", "1:32")  # axis:group_size
DTYPES = ("float32", "float16", "bfloat16")
SCALES = (0.002, 0.02, 1.0)
SOURCES = ("gaussian", "laplace", "student-t", "minilm", "effnet")
SENSITIVITIES = ("none", "elementwise", "per vector")
ALGORITHMS = ("fast", "exact", "pairs", "fours")
FACTORS = (ALL_BITS, GRANULARITIES, DTYPES, SCALES, SOURCES, SENSITIVITIES, ALGORITHMS)


@dataclass(frozen=True)
class Case:
    """One weight and what to do with it.

    Attributes:
        bits: of the palette.
        granularity: ``"tensor"``, or axis and group size.
        dtype: of the weight.
        scale: its standard deviation.
        source: a distribution, or a real model.
        sensitivity: ``"per vector"`` is the same along every four output channels: there, the
            documented sum over a vector and the elementwise form ask for the same optimum.
        algorithm: ``"fast"`` and ``"exact"`` are scalar, ``"pairs"`` and ``"fours"`` vectors.
    """

    bits: int
    granularity: str
    dtype: str
    scale: float
    source: str
    sensitivity: str
    algorithm: str

    @property
    def cluster_dim(self) -> int:
        return {"pairs": 2, "fours": 4}.get(self.algorithm, 1)

    @property
    def axis_and_size(self) -> tuple[int, int]:
        """Of a grouped granularity."""
        axis, size = self.granularity.split(":")
        return int(axis), int(size)

    def __str__(self) -> str:
        return "-".join(str(value).replace(" ", "_") for value in astuple(self))


def covering(seed: int = 0, tries: int = 30) -> list[Case]:
    """Return the selection; the same on every machine."""
    rng = random.Random(seed)
    left = set(_all_triples())
    # One list, for the order of a set of strings differs from run to run.
    queue = sorted(left, key=str)
    rng.shuffle(queue)
    cases = []
    for triple in queue:
        if triple not in left:
            continue
        best = max(
            (_completed(triple, rng) for _ in range(tries)), key=lambda row: _gain(row, left)
        )
        left.difference_update(_triples(best))
        cases.append(Case(*best))
    return cases


Triple = tuple[tuple[int, object], ...]


def _all_triples() -> Iterator[Triple]:
    for places in itertools.combinations(range(len(FACTORS)), 3):
        for values in itertools.product(*(FACTORS[p] for p in places)):
            yield tuple(zip(places, values, strict=True))


def _triples(row: tuple) -> Iterator[Triple]:
    return itertools.combinations(enumerate(row), 3)


def _completed(triple: Triple, rng: random.Random) -> tuple:
    row = [rng.choice(values) for values in FACTORS]
    for place, value in triple:
        row[place] = value
    return tuple(row)


def _gain(row: tuple, left: set[Triple]) -> int:
    return sum(triple in left for triple in _triples(row))
