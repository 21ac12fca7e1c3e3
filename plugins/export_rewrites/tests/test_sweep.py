"""What judges converters, and the list of programs on the page."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from export_rewrites.programs import PROGRAMS
from export_rewrites.sweep import judge, list_of_programs, put_section
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


def test_the_page_lists_the_programs() -> None:
    write = bool(os.environ.get("PALETTE_WRITE_DOCS"))
    assert put_section(PAGE, "programs", list_of_programs(), write=write)
