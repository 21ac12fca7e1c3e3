"""``palette export`` and the options of backends, with a backend made for the test."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import pytest

from palette_core.plugins.catalog import get_catalog

FACTORY = """
    import torch
    from torch import nn

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, left, right):
            return self.inner(left) + right

    def load():
        torch.manual_seed(0)
        return Two(), (torch.randn(2, 16), torch.randn(2, 16))

    def other():
        return nn.Linear(3, 5), (torch.randn(2, 3),)
"""

# Writes what it was told, as JSON, and refuses as its option says.
BACKEND = """
    import json
    from typing import Any

    import torch
    from pydantic import BaseModel, ConfigDict, Field
    from palette_core.plugins import Backend, ExportBackendEntry, Refusal, hookimpl

    class Options(BaseModel):
        model_config = ConfigDict(frozen=True, extra="forbid")
        level: int = Field(default=1, ge=0, description="how much")
        refuse: bool = Field(default=False, description="refuse everything")

    class Teller(Backend):
        def __init__(self, options):
            self.options = options

        def check_support(self, facts):
            return Refusal("told to") if self.options.refuse else None

        def check_program(self, model, example_inputs, dynamic_shapes=None):
            fixed = dynamic_shapes is not None and "max=9" in repr(dynamic_shapes)
            return [Refusal(f"lengths up to 9, of {list(dynamic_shapes)}")] if fixed else []

        def finalize(self, model, palettized):
            return model

        def export(self, model, example_inputs, path, dynamic_shapes=None):
            path.write_text(json.dumps({
                "options": self.options.model_dump(),
                "inputs": len(example_inputs),
                "dynamic": repr(dynamic_shapes),
            }))
            return path

    @hookimpl
    def palette_core_export_backends():
        return [ExportBackendEntry(
            name="teller", summary="writes what it is told", interface=1,
            factory=Teller, options=Options, suffix=".told",
        )]
"""


@pytest.fixture
def palette(command, tmp_path, monkeypatch):
    """Run the command where ``fac.py`` is and the backend is installed."""
    (tmp_path / "fac.py").write_text(textwrap.dedent(FACTORY))
    (tmp_path / "teller_hooks.py").write_text(textwrap.dedent(BACKEND))
    info = tmp_path / "teller-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: teller\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[palette_core]\nteller = teller_hooks\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    get_catalog.cache_clear()
    yield command
    sys.modules.pop("teller_hooks", None)
    get_catalog.cache_clear()


def told(path: str) -> dict:
    return json.loads(Path(path).read_text())


def test_the_backend_follows_from_the_file_name(palette):
    code, _, err = palette("palettize", "fac.py", "-o", "m.told")
    assert code == 0, err
    assert told("m.told") == {
        "options": {"level": 1, "refuse": False},
        "inputs": 2,
        "dynamic": "None",
    }


def test_options_reach_the_backend(palette):
    code, _, err = palette("palettize", "fac.py", "-o", "m.told", "--option", "level=3")
    assert code == 0, err
    assert told("m.told")["options"]["level"] == 3


def test_a_checkpoint_is_exported_without_clustering_again(palette, monkeypatch):
    assert palette("palettize", "fac.py", "-o", "m.safetensors")[0] == 0
    monkeypatch.setattr(
        "palette_core.engine.executor.Executor.run", lambda *a, **k: pytest.fail("clustered")
    )
    code, out, err = palette("export", "fac.py", "m.safetensors", "-o", "m.told", "--json")
    assert code == 0, err
    totals = json.loads(out)
    assert totals["file"] == "m.told"
    assert totals["file_bytes"] == Path("m.told").stat().st_size
    assert totals["checkpoint_bytes"] == Path("m.safetensors").stat().st_size
    assert 0 < totals["bits_per_weight"] < 32
    again = palette("export", "fac.py", "m.safetensors", "-o", "again.safetensors")
    assert again[0] == 0
    assert Path("again.safetensors").read_bytes() == Path("m.safetensors").read_bytes()
    code, out, err = palette("export", "fac.py", "m.safetensors", "-o", "m.told")
    assert code == 0
    assert "checkpoint" in out
    assert "m.told" in out


def test_axes_that_may_vary(palette):
    code, _, err = palette(
        "palettize", "fac.py", "-o", "m.told", "--dynamic", "left:0=1..8", "--dynamic", "right:0"
    )
    assert code == 0, err
    text = told("m.told")["dynamic"]
    assert "'left': {0: " in text
    assert "min=1, max=8" in text
    assert "'right': {0: " in text


def test_plan_asks_the_backend_with_its_options(palette):
    assert palette("plan", "fac.py", "--backend", "teller")[0] == 0
    code, _, err = palette("plan", "fac.py", "--backend", "teller", "--option", "refuse=true")
    assert code == 2
    assert "inner.weight (16, 16)" in err
    assert "told to" in err


@pytest.mark.parametrize(
    "run",
    [
        ("plan",),
        ("palettize", "-o", "m.told"),
        ("allocate", "-o", "m.yaml", "--target-bpw", "5"),
    ],
    ids=lambda run: run[0],
)
def test_the_backend_is_asked_about_axes_that_may_vary(palette, run) -> None:
    asked = (run[0], "fac.py", *run[1:], "--backend", "teller", "--dynamic")
    code, _, err = palette(*asked, "left:0=1..8")
    assert code == 0, err
    code, _, err = palette(*asked, "left:0=1..9")
    assert code == 2
    assert "lengths up to 9, of ['left', 'right']" in err


@pytest.mark.parametrize(
    "run", [("plan",), ("allocate", "-o", "m.yaml", "--target-bpw", "5")], ids=lambda c: c[0]
)
def test_axes_that_may_vary_are_the_backends_business(palette, run) -> None:
    code, _, err = palette(run[0], "fac.py", *run[1:], "--dynamic", "left:0")
    assert code == 2
    assert "--dynamic is for the export backend; name it with --backend" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-o", "m.tolt"), ["m.tolt", ".safetensors (packed)", ".told (teller)"]),
        (("-o", "m.told", "--backend", "packed"), [".safetensors", "m.told"]),
        (("-o", "m.told", "--option", "levl=3"), ["levl", "did you mean 'level'"]),
        (("-o", "m.told", "--option", "level=-1"), ["level=-1", "greater than or equal to 0"]),
        (("-o", "m.told", "--option", "level"), ["'level'", "NAME=VALUE"]),
        (("-o", "m.told", "--option", "level=1", "--option", "level=2"), ["once"]),
        (("-o", "m.told", "--option", "level=["), ["YAML"]),
        (("-o", "m.told", "--dynamic", "left"), ["'left'", "INPUT:AXIS"]),
        (("-o", "m.told", "--dynamic", "left:0=8..1"), ["INPUT:AXIS=MIN..MAX"]),
        (("-o", "m.told", "--dynamic", "lef:0"), ["lef", "did you mean 'left'", "left, right"]),
        (("-o", "m.told", "--option", "refuse=true"), ["inner.weight", "told to"]),
        (("-o", "m.safetensors", "--dynamic", "left:0"), ["dynamic_shapes"]),
    ],
)
def test_bad_input_is_one_line_before_the_work(palette, args, words, monkeypatch):
    if "safetensors" not in args[1]:
        monkeypatch.setattr(
            "palette_core.engine.executor.Executor.run", lambda *a, **k: pytest.fail("clustered")
        )
    code, _, err = palette("palettize", "fac.py", *args)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert all(word in err for word in words), err
    assert not Path("m.told").exists()


def test_options_need_a_backend_in_plan(palette):
    code, _, err = palette("plan", "fac.py", "--option", "level=1")
    assert code == 2
    assert "--backend" in err


def test_a_checkpoint_of_another_model(palette):
    assert palette("palettize", "fac.py", "-o", "m.safetensors")[0] == 0
    code, _, err = palette("export", "fac.py:other", "m.safetensors", "-o", "m.told")
    assert code == 2
    assert "does not fit the model" in err
    code, _, err = palette("export", "fac.py", "no.safetensors", "-o", "m.told")
    assert code == 2
    assert "no.safetensors" in err
