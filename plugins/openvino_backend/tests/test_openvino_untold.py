"""Exports send no usage events of OpenVINO's, which fork the process."""

from __future__ import annotations

import openvino as ov
import pytest
import torch
from torch import nn

from openvino_backend.untold import untold
from palette_core import KMeansPalettizer

sender = pytest.importorskip("openvino_telemetry.utils.sender")
telemetry = pytest.importorskip("openvino.tools.ovc.telemetry_utils")


@pytest.fixture
def sent(monkeypatch):
    """Messages that would be sent, by somebody who did not say no."""
    found = []
    keep = sender.TelemetrySender
    monkeypatch.setattr(keep, "send", lambda self, *message: found.append(message))
    # one for the whole process, which asked the environment once, before another test perhaps
    monkeypatch.setattr(telemetry.init_ovc_telemetry(), "consent", True)
    return found


def test_an_export_sends_nothing_and_leaves_the_rest_as_it_was(sent, tmp_path):
    ov.convert_model(nn.Linear(4, 4).eval(), example_input=torch.randn(1, 4))
    own = len(sent)
    assert own > 0  # what would be sent is seen here
    palettizer = KMeansPalettizer(nn.Linear(64, 64).eval())
    inputs = (torch.randn(1, 64),)
    palettizer.prepare(inputs)
    palettizer.export(tmp_path / "model.xml", inputs, backend="openvino")
    assert len(sent) == own
    ov.convert_model(nn.Linear(4, 4).eval(), example_input=torch.randn(1, 4))
    assert len(sent) > own


def test_the_last_of_several_conversions_puts_things_back():
    before = sender.TelemetrySender.send
    first, second = untold(), untold()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert sender.TelemetrySender.send is not before
    second.__exit__(None, None, None)
    assert sender.TelemetrySender.send is before
