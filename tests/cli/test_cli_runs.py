"""``palette report``, ``compare`` and ``sweep``: files of runs, and a sweep that is killed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

FACTORY = """
    import os, pathlib, time
    import torch
    from torch import nn

    def load():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(32, 16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 12))
        return model, (torch.arange(32)[None],)

    def evaluate(model):
        if log := os.environ.get("LOG"):
            with open(log, "a") as file:
                file.write("evaluated\\n")
            if os.environ.get("SLOW") and len(pathlib.Path(log).read_text().splitlines()) > 2:
                time.sleep(600)
        assert not model.training
        return {"spread": model(torch.arange(32)[None]).std()}

    def fails(model):
        return "words"
"""
SKIPPED_ARE_TOLD = pytest.mark.filterwarnings("default::palette_core.errors.PaletteWarning")
SWEEP = """
    model: fac.py
    grid:
      n_bits: [2, 4]
      granularity: [per_tensor, 4, 5]
"""


@pytest.fixture
def palette(command, tmp_path: Path):
    """Run the command in a folder with ``fac.py`` and ``sweep.yaml``."""
    (tmp_path / "fac.py").write_text(textwrap.dedent(FACTORY))
    (tmp_path / "sweep.yaml").write_text(textwrap.dedent(SWEEP))
    return command


def _run(palette, tmp_path: Path, name: str, bits: int) -> None:
    spec = f"global_config: {{op_state_spec: {{weight: {{n_bits: {bits}}}}}}}"
    (tmp_path / "c.yaml").write_text(f"kmeans_palettization_config: {{{spec}}}")
    code, _, err = palette(
        "palettize", "fac.py", "-c", "c.yaml", "-o", "m.safetensors", "--eval", "fac.py:evaluate",
        "--report", f"{name}.json", "--report", f"{name}.html",
    )  # fmt: skip
    assert code == 0, err


def test_runs_are_reported_and_compared(palette, tmp_path):
    for name, bits in (("two", 2), ("four", 4)):
        _run(palette, tmp_path, name, bits)
    page = (tmp_path / "two.html").read_text()
    assert "m.safetensors" in page
    assert ">spread<" in page
    code, out, _ = palette("report", "two.json", "-o", "again.html")
    assert code == 0
    assert "again.html" in out
    assert (tmp_path / "again.html").read_text().replace("again<", "two<") == page
    code, out, err = palette("compare", "four.json", "two.json", "--json", "-o", "both.html")
    assert code == 0, err
    found = json.loads(out)
    assert [row["name"] for row in found["rows"]] == ["two", "four"]
    assert found["judge"] == "spread"
    assert found["rows"][0]["on_front"]
    assert found["rows"][0]["output_error"] > found["rows"][1]["output_error"]
    names = {item["name"]: item["specs"] for item in found["differences"]}
    assert set(names) == {"1.weight", "3.weight"}
    assert names["1.weight"][0].startswith("2 bits, per tensor")
    assert (
        "polyline" in (tmp_path / "both.html").read_text() or found["rows"][1]["on_front"] is False
    )
    code, out, _ = palette("compare", "four.json", "two.json", "--by", "output error")
    assert out.count("front") == 2


BAD = {
    ("compare", "one.json"): "two runs or more",
    ("compare", "one.json", "one.json", "--by", "spred"): "did you mean 'spread'",
    ("compare", "one.json", "fac.py"): "fac.py is no run",
    ("compare", "one.json", "one.json", "-o", "x.png"): "use one of .html, .json, .csv",
    ("report", "m.safetensors"): "is no run but what a run has written",
    ("sweep", "fac.py", "--eval", "fac.py:evaluate"): "fac.py",
    ("sweep", "none.yaml", "--eval", "fac.py:evaluate"): "none.yaml",
    ("sweep", "sweep.yaml", "--eval", "fac.py:fails"): "has to return a number",
    ("sweep", "bits.yaml", "--eval", "fac.py:evaluate"): "did you mean 'n_bits'",
    ("sweep", "five.yaml", "--eval", "fac.py:evaluate"): "no point of five.yaml could be done",
    ("palettize", "fac.py", "-o", "m.safetensors", "--eval", "fac.py:fails"): "a number",
}


def test_what_cannot_be_done_is_one_line(palette, tmp_path):
    _run(palette, tmp_path, "one", 2)
    (tmp_path / "bits.yaml").write_text("model: fac.py\ngrid: {nbits: [1, 2]}\n")
    (tmp_path / "five.yaml").write_text("model: fac.py\ngrid: {n_bits: [5]}\n")
    for arguments, said in BAD.items():
        code, out, err = palette(*arguments)
        assert code == 2, arguments
        assert said in err, arguments
        assert len(err.strip().splitlines()) == 1, err
        assert out == ""


def _table(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / "sweep" / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@SKIPPED_ARE_TOLD
def test_a_sweep_makes_every_point_once(palette, tmp_path, monkeypatch):
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    code, out, err = palette("sweep", "sweep.yaml", "--eval", "fac.py:evaluate", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["runs"] == ["2_per_tensor", "2_4", "4_per_tensor", "4_4"]
    assert set(told["refused"]) == {"2_5", "4_5"}
    rows = _table(tmp_path)
    assert [(row["n_bits"], row["granularity"]) for row in rows] == [
        ("2", "per_tensor"), ("2", "4"), ("2", "5"), ("4", "per_tensor"), ("4", "4"), ("4", "5"),
    ]  # fmt: skip
    assert [row["asked_but_dense"] for row in rows] == ["0", "0", "", "0", "0", ""]
    assert rows[2]["refused"] == "nothing is palettized"
    assert float(rows[1]["output_error"]) > float(rows[4]["output_error"]) > 0
    assert "<svg" in (tmp_path / "sweep" / "sweep.html").read_text()
    evaluated = (tmp_path / "log").read_text()
    assert evaluated.count("evaluated") == 4
    assert palette("sweep", "sweep.yaml", "--eval", "fac.py:evaluate")[0] == 0
    assert (tmp_path / "log").read_text() == evaluated  # all were there already
    (tmp_path / "sweep" / "2_4.json").write_text("{")  # damaged
    assert palette("sweep", "sweep.yaml", "--eval", "fac.py:evaluate")[0] == 0
    assert (tmp_path / "log").read_text().count("evaluated") == 5
    (tmp_path / "fac.py").write_text(
        (tmp_path / "fac.py").read_text().replace("manual_seed(0)", "manual_seed(10)")
    )
    assert palette("sweep", "sweep.yaml", "--eval", "fac.py:evaluate")[0] == 0
    assert (tmp_path / "log").read_text().count("evaluated") == 9  # another model: all anew


@SKIPPED_ARE_TOLD
@pytest.mark.slow
def test_a_killed_sweep_goes_on(palette, tmp_path, monkeypatch):
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    command = [sys.executable, "-m", "palette_core", "sweep", "sweep.yaml", "--eval"]
    child = subprocess.Popen(
        [*command, "fac.py:evaluate"], cwd=tmp_path, env={**os.environ, "SLOW": "1"}
    )
    try:
        log, end = tmp_path / "log", time.monotonic() + 120
        while not (log.exists() and log.read_text().count("evaluated") == 3):
            assert child.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    done = {path.name: path.read_bytes() for path in (tmp_path / "sweep").glob("*.json")}
    assert set(done) == {"2_per_tensor.json", "2_4.json"}
    code, _, err = palette("sweep", "sweep.yaml", "--eval", "fac.py:evaluate")
    assert code == 0, err
    assert log.read_text().count("evaluated") == 3 + 2
    now = {path.name: path.read_bytes() for path in (tmp_path / "sweep").glob("*.json")}
    assert len(now) == 4
    assert {name: now[name] for name in done} == done
    assert not [p.name for p in (tmp_path / "sweep").iterdir() if p.name.startswith(".")]
    assert len([row for row in _table(tmp_path) if not row["refused"]]) == 4
