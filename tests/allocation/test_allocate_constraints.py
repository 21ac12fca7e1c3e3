"""Demands on single tensors: which holds, what is offered, and what is said when none can."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from palette_core import allocate
from palette_core.allocation import Allocation
from palette_core.errors import AllocationError

INPUTS = (torch.randn(4, 16, generator=torch.Generator().manual_seed(1)),)


def run(target: float = 50.0, **how: Any) -> Allocation:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4))
    return allocate(model.eval(), None, INPUTS, target_bpw=target, **how)


def offered(allocation: Allocation) -> dict[str, list[int]]:
    return {t.name: [c.plan.spec.n_bits for c in t.candidates] for t in allocation.tensors}


@pytest.mark.parametrize("swap", [False, True])
def test_the_strictest_minimum_holds(swap: bool) -> None:
    pairs = [(r"0\.weight", 6), (".*", 3), (r"[02].*", 4)]
    found = offered(run(minimum=dict(reversed(pairs) if swap else pairs)))
    assert found == {"0.weight": [6, 8], "2.weight": [4, 6, 8], "3.weight": [3, 4, 6, 8]}


def test_minimum_counts_bits_that_no_palette_has() -> None:
    assert offered(run(minimum={".*": 5}))["0.weight"] == [6, 8]


def test_fixed_above_the_minimum() -> None:
    assert offered(run(minimum={".*": 3}, fixed={r"0\.weight": 4}))["0.weight"] == [4]


def test_expressions_match_whole_names() -> None:
    with pytest.raises(AllocationError, match=r"whole names, such as 0\.weight"):
        run(fixed={"weight": 4})


GROUPED = {"type": "per_grouped_channel", "group_size": 4}


def test_fixed_bits_that_no_candidate_has_get_the_offered_granularity() -> None:
    candidates = [{"n_bits": n, "granularity": GROUPED} for n in (2, 3)]
    chosen = run(candidates=candidates, fixed={r"2\.weight": 6}).tensors[1]
    (only,) = chosen.candidates
    assert only.plan.spec.n_bits == 6
    assert only.plan.spec.granularity.model_dump(exclude_none=True) == GROUPED


def test_fixed_bits_that_no_candidate_has_get_every_offered_granularity() -> None:
    candidates = [2, 3, {"n_bits": 2, "granularity": GROUPED}, {"granularity": GROUPED}]
    specs = [
        c.plan.spec for c in run(candidates=candidates, fixed={"2.*": 6}).tensors[1].candidates
    ]
    assert [s.n_bits for s in specs] == [6, 6]
    assert [s.granularity.type for s in specs] == ["per_tensor", "per_grouped_channel"]


def test_fixed_bits_that_some_candidate_has_get_no_others() -> None:
    candidates = [2, {"n_bits": 3, "granularity": GROUPED}]
    specs = [
        c.plan.spec for c in run(candidates=candidates, fixed={"2.*": 3}).tensors[1].candidates
    ]
    assert [(s.n_bits, s.granularity.type) for s in specs] == [(3, "per_grouped_channel")]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"fixed": {".*": 2}, "minimum": {r"0\..*": 6}}, ["0.weight", "2 bits", "at least 6"]),
        ({"fixed": {".*": 2, r"0\..*": 3}}, ["0.weight", "both 2 and 3 bits"]),
        ({"fixed": {".*": 5}}, ["fixed: '.*'", "1, 2, 3, 4, 6 or 8", "got 5"]),
        ({"fixed": {".*": "4"}}, ["fixed: '.*'", "got '4'"]),
        ({"fixed": {".*": True}}, ["got True"]),
        ({"minimum": {".*": 9}}, ["minimum: '.*'", "7 or 8", "got 9"]),
        ({"minimum": {".*": 3.5}}, ["minimum: '.*'", "got 3.5"]),
        ({"minimum": {".*": None}}, ["minimum: '.*'", "got None"]),
        (
            {"minimum": {r"2\..*": 7}, "candidates": (2, 3)},
            ["2.weight", "minimum", "at least 7", "candidates have 2, 3"],
        ),
        (
            {"fixed": {r"2\..*": 3}, "exclude": [r"2\.weight"]},
            ["fixed: '2", "only what exclude leaves dense: 2.weight"],
        ),
        ({"minimum": {"4.*": 3}}, ["minimum: '4.*' matches no tensor"]),
    ],
)
def test_demands_that_cannot_be_met(how: dict, words: list[str]) -> None:
    with pytest.raises(AllocationError) as raised:
        run(**how)
    assert all(word in str(raised.value) for word in words), raised.value


def test_one_reason_is_given_once() -> None:
    granularity = {"type": "per_grouped_channel", "group_size": 7}
    with pytest.raises(AllocationError) as raised:
        run(candidates=[{"n_bits": n, "granularity": granularity} for n in (2, 3, 4)])
    assert str(raised.value).count("group_size") == 2  # what was asked for, and why it cannot be
    assert "2, 3, 4 bits with granularity=" in str(raised.value)
