"""Inputs by keyword, wherever a command takes inputs or batches."""

from __future__ import annotations

import json
import textwrap

import pytest

FACTORY = """
    import torch
    from torch import nn

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(16, 8)
            self.out = nn.Linear(8, 4)

        def forward(self, *, input_ids, scale=None, flag=False):
            found = self.embed(input_ids)
            return self.out(found if scale is None else found * scale)

    def model():
        torch.manual_seed(0)
        return Pair().eval()

    def inputs(seed=0):
        made = torch.Generator().manual_seed(seed)
        return {"input_ids": torch.randint(16, (2, 5), generator=made), "scale": None, "flag": True}

    def load():
        return model(), inputs()

    def batches():
        return [inputs(seed) for seed in range(3)]

    def pairs():
        return [(each, torch.zeros(2, 5, 4)) for each in batches()]

    def measure(model):
        return float(model(**inputs(9)).square().mean())
"""
CONFIG = """
    kmeans_palettization_config:
      global_config:
        op_state_spec:
          weight: {n_bits: 2, algorithm: lnq}
"""


@pytest.fixture
def palette(command, tmp_path):
    (tmp_path / "fac.py").write_text(textwrap.dedent(FACTORY))
    (tmp_path / "lnq.yaml").write_text(textwrap.dedent(CONFIG))

    def call(*arguments):
        code, out, err = command(*arguments)
        assert code == 0, err
        return out

    return call


def test_a_dictionary_goes_through_every_command(palette):
    by_data = ("--calibration", "fac.py:batches", "--held-out", "fac.py:batches")
    plan = json.loads(palette("plan", "fac.py:load", "--json"))
    assert [row["names"] for row in plan["tensors"]] == [["out.weight"]]
    palette("palettize", "fac.py:load", "-c", "lnq.yaml", "-o", "m.safetensors", *by_data)
    palette(
        "calibrate", "fac.py:load", "--data", "fac.py:pairs", "--loss", "mse_loss", "-o", "s.pt"
    )
    palette("palettize", "fac.py:load", "--sensitivities", "s.pt", "-o", "s.safetensors")
    data = ("--data", "fac.py:batches", "--metric", "output", "--measure", "fac.py:measure")
    palette("allocate", "fac.py:load", "--target-bpw", 9, "-o", "chosen.yaml", *data)
    palette("export", "fac.py:load", "m.safetensors", "-o", "again.safetensors")


def test_an_option_names_the_inputs(palette, command, tmp_path):
    palette("plan", "fac.py:model", "--input", "input_ids=int64[2,5]")
    both = ("--input", "input_ids=int64[2,5]", "--input", "scale=float32[1]")
    palette("palettize", "fac.py:model", *both, "-o", "m.safetensors")
    for wrong, says in (
        (
            ("--input", "input_ids=int64[2,5]", "--input", "float32[1]"),
            "name=dtype[shape] for every",
        ),
        (("--input", "a=int64[2]", "--input", "a=int64[2]"), "each name once"),
        (("--input", "input-ids=int64[2]"), "'input-ids' is no name of an input"),
        (("--input", "input_ids=int64"), "cannot read input 'int64'"),
        (("--input", "words=int64[2,5]"), "unexpected keyword argument 'words'"),
    ):
        code, _, err = command("plan", "fac.py:model", *wrong)
        assert code == 2
        assert says in " ".join(err.split())
