"""A package of two functions with states, written by the command line and a file of functions."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from mil_evaluator import Package

from palette_core.cli.factories import load_factory
from palette_core.storage import load_checkpoint

FACTORY = """
    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix = nn.Embedding(128, 32), nn.Linear(32, 32)
            self.head = nn.Linear(32, 128, bias=False)
            self.head.weight = self.embed.weight
            self.register_buffer("cache", torch.zeros(16, 32))

        def forward(self, ids, places):
            x = self.embed(ids)
            start, length = places[0].item(), ids.shape[0]
            torch._check(start >= 0)
            torch._check(start + length <= 16)
            self.cache[start:start + length] = x
            seen = (torch.arange(16) <= places[:, None]).to(x.dtype)
            return self.head(x + self.mix(seen @ self.cache))


    def load():
        torch.manual_seed(0)
        places = torch.arange(5, dtype=torch.int32)
        return Net().eval(), {"ids": places * 7, "places": places}
"""
FUNCTIONS = """
    functions:
      prefill:
        dynamic: [ids:0=2..16, places:0=2..16]
      decode:
        inputs: {ids: "int32[1]", places: "int32[1]"}
    output_names: [logits]
    state_names: {cache: kvCache}
    metadata: {context: "16"}
"""


@pytest.mark.slow
def test_prefill_and_decode_out_of_a_file_give_the_models_tokens(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(textwrap.dedent(FACTORY))
    (tmp_path / "f.yaml").write_text(textwrap.dedent(FUNCTIONS))
    how = ["--backend", "coreml", "--functions", "f.yaml", "--option", "compute_precision=float32"]
    for arguments in (
        ["palettize", "net.py", "-o", "net.safetensors"],
        ["export", "net.py", "net.safetensors", "-o", "net.mlpackage", *how],
    ):
        subprocess.run([sys.executable, "-m", "palette_core", *arguments], check=True)
    path = Path("net.mlpackage")
    described = ct.models.MLModel(str(path), skip_model_load=True).get_spec().description
    found = {each.name: [each.state[0].name, each.output[0].name] for each in described.functions}
    assert found == {"prefill": ["kvCache", "logits"], "decode": ["kvCache", "logits"]}
    assert described.metadata.userDefined["context"] == "16"
    model = load_checkpoint(Path("net.safetensors"), load_factory("net.py", ()).model)
    prefill, decode = Package(path, "prefill"), Package(path, "decode")
    ids = [3, 14, 15, 92, 65]
    step, function = ids, prefill
    for _ in range(6):
        places = torch.arange(len(ids) - len(step), len(ids), dtype=torch.int32)
        given = {"ids": torch.tensor(step, dtype=torch.int32), "places": places}
        with torch.no_grad():
            wanted = model(**given)
        got = function({name: value.numpy() for name, value in given.items()})
        np.testing.assert_allclose(got["logits"], wanted, atol=2e-2)  # states are float16
        assert got["logits"][-1].argmax() == int(wanted[-1].argmax())
        decode.states = function.states
        step, function = [int(wanted[-1].argmax())], decode
        ids.append(step[0])
