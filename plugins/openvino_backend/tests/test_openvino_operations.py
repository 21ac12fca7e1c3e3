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
from export_rewrites.sweep import Verdict, judge_all, put_section, section
from openvino_backend.backend import OpenVINOBackend
from openvino_backend.options import OpenVINOOptions
from palette_core.errors import BackendError

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"
NAN = "relu of NaN and infinity"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory) -> dict[str, Verdict]:
    backend, folder = OpenVINOBackend(OpenVINOOptions()), tmp_path_factory.mktemp("sweep")

    def run(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        path = backend.export(model, inputs, folder / "m.xml")
        return [torch.as_tensor(array) for array in run_file(path, *inputs)]

    return judge_all(PROGRAMS, run)


def test_nothing_is_wrong_and_little_is_refused(verdicts) -> None:
    assert len(verdicts) >= 230
    # Keeping NaN in every relu would cost every network its fused activations; the page says so.
    assert {name for name, v in verdicts.items() if v.word == "wrong"} <= {NAN}
    assert len([v for v in verdicts.values() if v.word == "refused"]) <= 25


def test_the_page_is_current(verdicts) -> None:
    text = section(verdicts, lambda reason: reason.partition(";")[0])
    assert put_section(PAGE, "openvino", text, write=bool(os.environ.get("PALETTE_WRITE_DOCS")))


def test_a_turn_by_two_numbers_is_refused(tmp_path) -> None:
    """The runtime takes it for a rotary embedding, 1.77 off."""

    class Turned(nn.Module):
        def forward(self, q: torch.Tensor) -> torch.Tensor:
            first, second = q.chunk(2, -1)
            return q * 0.6 + torch.cat([-second, first], -1) * 0.8

    inputs = (torch.randn(1, 2, 4, 8),)
    with pytest.raises(BackendError, match=r"aten\.add\.Tensor \(in the root module\).*rotary"):
        OpenVINOBackend(OpenVINOOptions()).export(Turned(), inputs, tmp_path / "m.xml")
    assert not list(tmp_path.iterdir())


def test_operations_that_check_their_result_are_named(tmp_path) -> None:
    model, inputs = nn.Sequential(Inverse()), (torch.eye(3)[None],)
    with pytest.raises(BackendError, match=r"_linalg_check_errors\.default \(in '0'\)"):
        OpenVINOBackend(OpenVINOOptions()).export(model, inputs, tmp_path / "m.xml")


class Inverse(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.inv(x)
