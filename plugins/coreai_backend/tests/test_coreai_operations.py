"""Every small program is converted to Core AI, run there, and compared with torch.

Writes its part of ``docs/operations.md`` with PALETTE_WRITE_DOCS=1 in the environment.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
from coreai_support import run_file
from torch import nn

from coreai_backend.backend import CoreAIBackend
from coreai_backend.options import CoreAIOptions
from export_rewrites.programs import PROGRAMS
from export_rewrites.sweep import Verdict, judge_all, put_section, section

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory) -> dict[str, Verdict]:
    backend, folder = CoreAIBackend(CoreAIOptions()), tmp_path_factory.mktemp("sweep")

    def run(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        fresh = Path(tempfile.mkdtemp(dir=folder)) / "m.aimodel"
        path = backend.export(model, inputs, fresh)
        return [torch.from_numpy(array) for array in run_file(path, *inputs)]

    return judge_all(PROGRAMS, run)


def test_nothing_is_wrong_and_little_is_refused(verdicts) -> None:
    assert len(verdicts) >= 230
    assert {name: v.reason for name, v in verdicts.items() if v.word == "wrong"} == {}
    assert len([v for v in verdicts.values() if v.word == "refused"]) <= 15


def test_the_page_is_current(verdicts) -> None:
    text = section(verdicts, lambda reason: reason.partition(";")[0])
    assert put_section(PAGE, "coreai", text, write=bool(os.environ.get("PALETTE_WRITE_DOCS")))
