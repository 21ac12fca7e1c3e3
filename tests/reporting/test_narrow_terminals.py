"""Tables in terminals of any width: names and numbers stay legible, what is left out is named."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from palette_core import KMeansPalettizer
from palette_core.reporting import console as show

NAME = "encoder_layers_attention_output"


@pytest.fixture(scope="module")
def palettizer() -> KMeansPalettizer:
    model = nn.Sequential()
    model.add_module(NAME, nn.Linear(64, 64))
    made = KMeansPalettizer(model)
    made.prepare(torch.ones(1, 64))
    return made


def printed(monkeypatch, width: int, what) -> str:
    stream = io.StringIO()
    monkeypatch.setattr(show, "console", Console(file=stream, width=width))
    what()
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 99, 100, 160])
def test_what_is_in_a_report(palettizer, monkeypatch, width):
    report = palettizer.report
    text = printed(monkeypatch, width, lambda: show.report(report))
    lines = text.split("\n")
    assert max(map(len, lines)) <= width
    assert len(lines) < 14  # no column is a tower of letters
    (row,) = [line for line in lines if "64×64" in line]
    for cell in ("2.062 KiB", f"{report.tensors[0].snr_db:.1f}"):
        assert cell in row
    assert ("per tensor" in row) == (width >= 100)
    assert ("in 100 columns or more, and --json: granularity" in text) == (width < 100)


def test_a_plan_names_its_rules_at_60_columns(palettizer, monkeypatch):
    text = printed(monkeypatch, 60, lambda: show.plan(palettizer.plan, as_json=False))
    assert "rule" in text.split("\n")[2]
    assert " global" in text  # its path goes on in the lines below
    assert max(map(len, text.split("\n"))) <= 60
