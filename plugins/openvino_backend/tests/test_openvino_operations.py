"""Every small program is converted to OpenVINO, run there, and compared with torch.

Writes its part of ``docs/operations.md`` with PALETTE_WRITE_DOCS=1 in the environment.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from openvino_support import run_file
from torch import nn

from export_rewrites.programs import PROGRAMS
from export_rewrites.sweep import Verdict, judge, put_section, section
from openvino_backend.backend import OpenVINOBackend
from openvino_backend.options import OpenVINOOptions

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory) -> dict[str, Verdict]:
    backend, folder = OpenVINOBackend(OpenVINOOptions()), tmp_path_factory.mktemp("sweep")

    def run(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        path = backend.export(model, inputs, folder / "m.xml")
        return [torch.as_tensor(array) for array in run_file(path, *inputs)]

    return {program.name: judge(program, run) for program in PROGRAMS}


def test_nothing_is_wrong_and_little_is_refused(verdicts) -> None:
    assert len(verdicts) >= 230
    assert {name: v.reason for name, v in verdicts.items() if v.word == "wrong"} == {}
    assert len([v for v in verdicts.values() if v.word == "refused"]) <= 25


def test_the_page_is_current(verdicts) -> None:
    text = section(verdicts, lambda reason: reason.partition(";")[0])
    assert put_section(PAGE, "openvino", text, write=bool(os.environ.get("PALETTE_WRITE_DOCS")))
