"""Never more error than coreai-opt: the same weights and specs through both."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from peer_cases import FACTORS, Case, covering
from peer_weights import sensitivity_of, weight_of

TOLERANCE = 1e-6  # relative

CASES = covering()


def test_the_selection_covers_every_three_factors() -> None:
    from dataclasses import astuple

    rows = [astuple(case) for case in CASES]
    for places in itertools.combinations(range(len(FACTORS)), 3):
        wanted = set(itertools.product(*(FACTORS[p] for p in places)))
        assert {tuple(row[p] for p in places) for row in rows} == wanted


@pytest.mark.peer
@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_is_never_higher(case: Case, tmp_path: Path) -> None:
    from peer_libraries import OURS, THEIRS, decoded, write_sensitivities

    weight = weight_of(case)
    sensitivity = sensitivity_of(case, tuple(weight.shape))
    path = write_sensitivities(sensitivity, tmp_path)
    exact = weight.double()
    importance = torch.ones_like(exact) if sensitivity is None else sensitivity.double()

    def error(library: object) -> float:
        palettized = decoded(library, case, weight, path)
        assert palettized.shape == weight.shape
        return float((importance * (palettized - exact).square()).sum())

    ours, theirs = error(OURS), error(THEIRS)
    # The reference must have worked for the comparison to say something.
    assert theirs < float((importance * exact.square()).sum())
    assert ours <= theirs * (1 + TOLERANCE), f"ours {ours:.9g}, reference {theirs:.9g}"
