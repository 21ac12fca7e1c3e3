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

    def loss(model):
        with torch.no_grad():
            return sum(model(batch).square().mean() for batch in batches())

    def wrong(model):
        return "much"

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
    pytest.importorskip("matplotlib")
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
    assert len(Path("cache.json").read_text().splitlines()) > 1


def test_predictions_next_to_measurements(palette):
    pytest.importorskip("matplotlib")
    args = ("allocate", "fac.py", "--target-bpw", 5, "-o", "c.yaml", "--measure", "fac.py:loss")
    code, out, err = palette(*args, "--plot", "curve.svg")
    assert code == 0, err
    assert "Predicted and measured" in out
    assert "measured" in Path("curve.svg").read_text()
    code, out, err = palette(*args, "--json")
    found = json.loads(out)
    rows = found["compared"]
    points = [found["curve"][i] for i in (0, len(found["curve"]) // 2, -1)]
    assert [[r["bits_per_weight"], r["predicted_loss"]] for r in rows] == points
    assert abs(rows[0]["measured_loss"]) > abs(rows[-1]["measured_loss"]) > 0
    code, _, err = palette(*args[:-1], "fac.py:wrong")
    assert code == 2
    assert "measure failed on the dense model" in err


def test_other_candidates_are_named_by_what_tells_them_apart(palette):
    common = ("allocate", "fac.py", "--target-bpw", 5, "-o", "c.yaml", "--candidates", "2,4")
    _, out, _ = palette(*common)
    assert "bits per tensor" not in " ".join(out.split())
    _, out, _ = palette(*common, "--granularity", "per_tensor", "--granularity", "16")
    out = " ".join(out.split())
    assert "2 bits per tensor:" in out
    assert "2 bits 16 × axis 0:" in out


def test_blocks_of_scales_to_choose_from(palette):
    common = ("allocate", "fac.py", "--target-bpw", 5.3, "-o", "c.yaml", "--candidates", "4")
    code, out, err = palette(*common, "--scale-block-size", "16,32,48,none", "--json")
    assert code == 0, err
    for tensor in json.loads(out)["tensors"]:
        sizes = [c["spec"]["scale_block_size"] for c in tensor["candidates"]]
        assert sorted(sizes, key=str) == [16, 32, None]  # 48 divides neither 32 nor 64 inputs
        spec = tensor["candidates"][tensor["chosen"]]["spec"]
        assert spec["scale_block_size"] == 16  # the budget has room for the smallest blocks
    assert "scale_block_size: 16" in Path("c.yaml").read_text()
    _, out, _ = palette(*common, "--scale-block-size", "16,32")
    assert "scale / 32:" in " ".join(out.split())  # the other candidate, told from the chosen one
    code, out, err = palette("palettize", "fac.py", "-c", "c.yaml", "-o", "m.safetensors", "--json")
    assert code == 0, err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--scale-block-size", "16;4"), ["16;4", "--scale-block-size", "16,32,64"]),
        (("--scale-block-size", "48"), ["no candidate is left", "48", "32"]),
        (("--scale-block-size", "0"), ["scale_block_size", "0"]),
        (("--candidates", "2;4"), ["--candidates", "2,3,4,6,8"]),
        (("--candidates", "2,7"), ["candidate 7"]),
        (("--granularity", "[1]"), ["--granularity", "per_tensor"]),
        (("--granularity", "per_tenser"), ["per_tenser"]),
        (("--metric", "outpt"), ["outpt", "did you mean 'output'"]),
        (("--metric", "output"), ["give some (--data)"]),
        (("--metric", "fisher"), ["(--sensitivities)"]),
        (("--target-bpw", "inf"), ["positive and finite", "inf"]),
        (("--minimum", "0.weight=x"), ["minimum: '0.weight'", "got 'x'"]),
        (("--minimum", "0.weight=3.5"), ["minimum: '0.weight'", "got 3.5"]),
        (("--fixed", "0.weight=5"), ["fixed: '0.weight'", "1, 2, 3, 4, 6 or 8", "got 5"]),
        (("--measure", "fac.py:los"), ["no callable 'los'", "did you mean 'loss'"]),
        (("--metric", "output", "--data", "fac.py:nothing"), ["fac.py:nothing", "int"]),
        (("--metric-option", "x=1"), ["unknown option 'x'"]),
        (("--fixed", "2.weight"), ["--fixed", "NAME=VALUE"]),
        (("--over", "all"), ["'palettized' or 'model'"]),
        (("--plot", "curve.txt"), ["curve.txt"]),
        (("--sensitivities", "none.safetensors"), ["none.safetensors"]),
    ],
)
def test_bad_input_is_one_line(palette, args, words):
    if "--plot" in args:
        pytest.importorskip("matplotlib")
    code, _, err = palette("allocate", "fac.py", "--target-bpw", 4, "-o", "c.yaml", *args)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert all(word in err for word in words), err
    assert not Path("c.yaml").exists()


def test_a_configuration_is_no_factory(palette):
    code, _, err = palette("allocate", "lnq.yaml", "--target-bpw", 4, "-o", "c.yaml")
    assert code == 2
    assert "lnq.yaml is a configuration, which goes to -c" in " ".join(err.split())
