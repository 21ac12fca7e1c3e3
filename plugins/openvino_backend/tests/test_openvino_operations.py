"""Every small program is converted to OpenVINO, run there, and compared with torch.

Writes its part of ``docs/operations.md`` with PALETTE_WRITE_DOCS=1 in the environment.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from openvino_support import run_file
from torch import nn

from export_rewrites.programs import PROGRAMS
from export_rewrites.sweep import Verdict, judge_all, put_section, section
from openvino_backend.backend import OpenVINOBackend
from openvino_backend.options import OpenVINOOptions
from palette_core.errors import BackendError

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"
ODD = torch.tensor([[1.5, math.nan, math.inf, -math.inf, 0.0, -2.5]])
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
    assert not [name for name, v in verdicts.items() if v.word == "wrong"]
    assert len([v for v in verdicts.values() if v.word == "refused"]) <= 25


def test_the_page_is_current(verdicts) -> None:
    text = section(verdicts, lambda reason: reason.partition(";")[0])
    assert put_section(PAGE, "openvino", text, write=bool(os.environ.get("PALETTE_WRITE_DOCS")))


class Bounded(nn.Module):
    """Activations of what is given, and behind what the runtime computes with them in one go."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.spread = nn.Linear(6, 6), nn.Conv1d(1, 2, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        wide = self.spread(x[None])
        alone = (torch.relu(x), torch.clamp(x, -1, 6), F.relu6(x), F.hardtanh(x))
        behind = (self.layer(x), wide, x + 1, x * wide)
        return (*alone, *(torch.relu(y) for y in behind), *(F.relu6(y) for y in behind))


@pytest.mark.parametrize("keep_nan", [False, True])
def test_activations_keep_nan_where_they_stand_alone_or_it_is_asked_for(keep_nan, tmp_path) -> None:
    model, backend = Bounded().eval(), OpenVINOBackend(OpenVINOOptions(keep_nan=keep_nan))
    path = backend.export(model, (ODD,), tmp_path / "m.xml")
    with torch.no_grad():
        wanted = model(ODD)
    found = [torch.as_tensor(array) for array in run_file(path, ODD)]
    for at, (got, want) in enumerate(zip(found, wanted, strict=True)):
        if keep_nan or at < 4:
            torch.testing.assert_close(got, want, equal_nan=True)
        else:  # and numbers are as they were
            torch.testing.assert_close(got[~want.isnan()], want[~want.isnan()])


def test_integers_are_rectified_as_they_are(tmp_path) -> None:
    class Integers(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x)

    given = torch.tensor([[-3, 0, 5]], dtype=torch.int32)
    path = OpenVINOBackend(OpenVINOOptions(keep_nan=True)).export(
        Integers(), (given,), tmp_path / "m.xml"
    )
    assert torch.equal(torch.as_tensor(run_file(path, given)[0]), torch.relu(given))


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
