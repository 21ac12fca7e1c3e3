"""What judges converters, and the list of programs on the page."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from export_rewrites.programs import PROGRAMS
from export_rewrites.sweep import judge, judge_all, list_of_programs, put_section
from palette_core.errors import BackendError

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"
BY_NAME = {program.name: program for program in PROGRAMS}


def eager(model: nn.Module, inputs):
    made = model(*inputs)
    return list(made) if isinstance(made, tuple) else [made]


def refuses(model: nn.Module, inputs):
    raise BackendError("aten.sort: no\nsorting")


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(PROGRAMS) >= 230


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("sort", lambda outputs: outputs, "right"),
        ("sort", lambda outputs: outputs[:1], "wrong"),
        ("sort", lambda outputs: [outputs[0], outputs[1] + 1], "wrong"),
        ("sort", lambda outputs: [outputs[0].mT, outputs[1]], "wrong"),
        ("isnan", lambda outputs: [~outputs[0]], "wrong"),
        ("log", lambda outputs: [outputs[0] + 1e-3], "wrong"),
        ("log", lambda outputs: [outputs[0] * torch.nan], "wrong"),
        ("sum", lambda outputs: [outputs[0].reshape(1)], "right"),
    ],
)
def test_verdicts(name, change, word) -> None:
    assert judge(BY_NAME[name], lambda m, x: change(eager(m, x))).word == word


def test_a_refusal() -> None:
    verdict = judge(BY_NAME["sort"], refuses)
    assert (verdict.word, verdict.reason) == ("refused", "aten.sort: no sorting")


def test_other_errors_are_failures() -> None:
    with pytest.raises(ZeroDivisionError):
        judge(BY_NAME["sort"], lambda m, x: 1 / 0)


def test_programs_in_company_are_judged_as_alone() -> None:
    """What is refused or wrong among others is found, and told alone."""
    asked: list[int] = []

    def run(model: nn.Module, inputs):
        asked.append(len(inputs))
        text = str(model)
        if "Embedding" in text:
            raise BackendError("no embeddings")
        return eager(model, inputs)

    names = ("Linear", "Embedding", "sort", "Conv2d", "Softmax2d", "sum")
    programs = [BY_NAME[name] for name in names]
    found = judge_all(programs, run, at_once=3)
    assert {name: v.word for name, v in found.items()} == {
        "Linear": "right", "Embedding": "refused", "sort": "right",
        "Conv2d": "right", "Softmax2d": "right", "sum": "right",
    }  # fmt: skip
    assert len(asked) == 2 + 3  # the first three once more, alone

    def wrong(model: nn.Module, inputs):
        return [
            output + 1 if output.is_floating_point() else output for output in eager(model, inputs)
        ]

    assert {v.word for v in judge_all(programs[3:], wrong).values()} == {"wrong"}


def test_the_page_lists_the_programs() -> None:
    write = bool(os.environ.get("PALETTE_WRITE_DOCS"))
    assert put_section(PAGE, "programs", list_of_programs(), write=write)
