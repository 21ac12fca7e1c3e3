"""``palette calibrate`` and ``palette palettize --sensitivities``."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from palette_core import KMeansPalettizer, read_checkpoint

FILE = """
    import torch
    from torch import nn

    def load():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        return model.eval(), (torch.randn(2, 16),)

    def load_other():
        model, inputs = load()
        with torch.no_grad():
            model[0].weight.mul_(2)
        return model, inputs

    def data():
        generator = torch.Generator().manual_seed(1)
        for label in range(4):
            x = torch.randn(3, 16, generator=generator)
            inputs = [x, (x,), [x], {"input": x}][label]
            yield inputs, torch.full((3,), label)

    def squares(output, target):
        return (output - target[:, None]).square().mean()

    def none():
        return []

    def number():
        return 3

    def singles():
        yield torch.zeros(3, 16)

    def broken():
        raise RuntimeError("no data")

    def wrong(output, target):
        return output
"""


@pytest.fixture
def palette(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "cal.py").write_text(textwrap.dedent(FILE))
    monkeypatch.setenv("COLUMNS", "200")
    return command


def test_the_file_is_that_of_calibrating_in_python(palette: Any, tmp_path: Path) -> None:
    code, out, err = palette(
        "calibrate", "cal.py:load", "--data", "cal.py:data", "-o", "s.safetensors", "--json"
    )
    assert code == 0, err
    printed = json.loads(out)
    assert printed["totals"]["steps"] == 4
    sys.path.insert(0, str(tmp_path))
    try:
        import cal
    finally:
        sys.path.remove(str(tmp_path))
    model, inputs = cal.load()
    palettizer = KMeansPalettizer(model)
    palettizer.prepare(inputs)
    with palettizer.calibration_mode(
        loss_fn=torch.nn.functional.cross_entropy, sensitivity_path="own.safetensors"
    ) as calibration:
        for x, target in cal.data():
            if isinstance(x, dict):
                x = x["input"]  # noqa: PLW2901
            calibration.step(model(x if torch.is_tensor(x) else x[0]), target)
    assert Path("s.safetensors").read_bytes() == Path("own.safetensors").read_bytes()
    snr = [row["snr_db"] for row in printed["tensors"]]
    assert snr == [row.snr_db for row in palettizer.report.tensors]
    # And `palettize` finds the same palettes with it.
    code, _, err = palette(
        "palettize", "cal.py:load", "-o", "m.safetensors", "--sensitivities", "s.safetensors"
    )
    assert code == 0, err
    for name, palettized in read_checkpoint("m.safetensors").palettized.items():
        assert torch.equal(palettized.decode(), model.get_submodule(name[:1]).weight)


def test_a_loss_of_ones_own(palette: Any) -> None:
    for name, loss in (("a", "cal.py:squares"), ("b", "cross_entropy")):
        code, out, err = palette(
            *("calibrate", "cal.py:load", "--data", "cal.py:data", "--loss", loss),
            *("-o", f"{name}.safetensors", "--offload"),
        )
        assert code == 0, err
        assert "steps" in out
    a, b = load_file("a.safetensors"), load_file("b.safetensors")
    assert not torch.equal(a["0.weight"], b["0.weight"])


def test_sensitivities_of_another_model(palette: Any) -> None:
    palette("calibrate", "cal.py:load", "--data", "cal.py:data", "-o", "s.safetensors")
    arguments = ("palettize", "cal.py:load_other", "-o", "m.safetensors", "--sensitivities")
    code, _, err = palette(*arguments, "s.safetensors")
    assert code == 2
    assert "measured on other values of 0.weight" in err
    code, _, err = palette(*arguments, "s.safetensors", "--trust-sensitivities")
    assert code == 0, err


@pytest.mark.parametrize(
    ("data", "loss", "message"),
    [
        ("cal.py", "cross_entropy", "cannot read --data 'cal.py'"),
        ("cal.py:dota", "cross_entropy", "has no callable 'dota'; did you mean 'data'?"),
        ("cal.py:none", "cross_entropy", "yields no batches"),
        (
            "cal.py:number",
            "cross_entropy",
            "must return or yield batches (inputs, target), got int",
        ),
        ("cal.py:singles", "cross_entropy", "batch 1 of cal.py:singles is no pair"),
        ("cal.py:broken", "cross_entropy", "cal.py:broken failed: RuntimeError: no data"),
        ("cal.py:data", "cross_entropi", "did you mean 'cross_entropy'?"),
        ("cal.py:data", "cal.py:wrong", "must return a scalar"),
    ],
)
def test_bad_input(palette: Any, data: str, loss: str, message: str) -> None:
    code, _, err = palette(
        "calibrate", "cal.py:load", "--data", data, "--loss", loss, "-o", "s.safetensors"
    )
    assert code == 2
    assert message in " ".join(err.split())
    assert not Path("s.safetensors").exists()
