"""``palette allocate``: a configuration within a size, tables, JSON, a picture."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from palette_core import KMeansPalettizerConfig

FACTORY = """
    import torch
    from torch import nn

    def load():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        with torch.no_grad():
            model[0].weight[:, 0] *= 40
        return model.eval(), (torch.randn(2, 32),)

    def batches():
        torch.manual_seed(1)
        for _ in range(3):
            yield torch.randn(4, 32)

    def nothing():
        return 3
"""


@pytest.fixture
def palette(command, tmp_path):
    (tmp_path / "fac.py").write_text(textwrap.dedent(FACTORY))
    return command


def test_it_writes_a_config_that_palettize_takes(palette):
    code, out, err = palette("allocate", "fac.py", "--target-bpw", 3.5, "-o", "c.yaml")
    assert code == 0, err
    assert "0.weight" in out
    assert "c.yaml" in out
    KMeansPalettizerConfig.from_yaml("c.yaml")
    code, out, err = palette("palettize", "fac.py", "-c", "c.yaml", "-o", "m.safetensors", "--json")
    assert code == 0, err
    assert json.loads(out)["totals"]["bits_per_palettized_weight"] <= 3.51


def test_json_and_a_picture(palette):
    code, out, err = palette(
        "allocate", "fac.py", "--target-bpw", 4.5, "-o", "c.yaml", "--candidates", "2,4",
        "--granularity", "per_tensor", "--granularity", "16", "--granularity", "16@1",
        "--metric", "output", "--metric-option", "divergence=mse", "--data", "fac.py:batches",
        "--fixed", r"2\.weight=2", "--cache", "cache.json", "--plot", "curve.png", "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert found["bits_per_weight"] <= 4.5
    rows = {t["name"]: t for t in found["tensors"]}
    kinds = {
        (c["spec"]["granularity"]["type"], c["spec"]["granularity"].get("axis"))
        for c in rows["0.weight"]["candidates"]
    }
    assert ("per_tensor", None) in kinds
    assert ("per_grouped_channel", 1) in kinds
    chosen = rows["2.weight"]["candidates"][rows["2.weight"]["chosen"]]
    assert chosen["spec"]["n_bits"] == 2
    assert Path("curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(Path("cache.json").read_text())["losses"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--candidates", "2;4"), ["--candidates", "2,3,4,6,8"]),
        (("--candidates", "2,7"), ["candidate 7"]),
        (("--granularity", "[1]"), ["--granularity", "per_tensor"]),
        (("--granularity", "per_tenser"), ["per_tenser"]),
        (("--metric", "outpt"), ["outpt", "did you mean 'output'"]),
        (("--metric", "output"), ["batches"]),
        (("--metric", "output", "--data", "fac.py:nothing"), ["fac.py:nothing", "int"]),
        (("--metric-option", "x=1"), ["unknown option 'x'"]),
        (("--fixed", "2.weight"), ["--fixed", "NAME=VALUE"]),
        (("--over", "all"), ["'palettized' or 'model'"]),
        (("--plot", "curve.txt"), ["curve.txt"]),
        (("--sensitivities", "none.safetensors"), ["none.safetensors"]),
    ],
)
def test_bad_input_is_one_line(palette, args, words):
    code, _, err = palette("allocate", "fac.py", "--target-bpw", 4, "-o", "c.yaml", *args)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert all(word in err for word in words), err
    assert not Path("c.yaml").exists()
