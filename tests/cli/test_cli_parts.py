"""Parts out of a file: written by both commands, and told by ``plan``."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from telling import teller as teller  # noqa: PLC0414 - a fixture
from telling import told

FACTORY = """
    import torch
    from torch import nn

    class Net(nn.Sequential):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(32, 16)
            self.layers = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
            self.head = nn.Linear(16, 32, bias=False)
            self.head.weight = self.embed.weight

    class Tail(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.layer, self.head = net.layers[2], net.head

        def forward(self, x):
            return self.head(self.layer(x))

    def load():
        torch.manual_seed(0)
        return Net(), (torch.arange(4),)
"""

PARTS = """
    parts:
      embeddings: embed
      body:
        modules: ["layers[0:2]", layers.2]
        dynamic: input:0=2..8
        output_names: hidden
      head: [head]
      tail:
        module: net.py:Tail
        inputs: float32[3,16]
        dynamic: x:0
"""

ALL = """
    kmeans_palettization_config:
      global_config:
        op_state_spec: {weight: {n_bits: 4}}
        op_type_config: {embedding: {op_state_spec: {weight: {n_bits: 4}}}}
"""
HOW = ("--backend", "teller", "--parts", "parts.yaml", "--metadata", "by=us")
COPIES = "embed.weight is in the files of embeddings, head and tail: 2 copies more"


@pytest.fixture
def palette(teller, tmp_path):
    """Run the command where ``net.py`` and the file are."""
    for name, text in (("net.py", FACTORY), ("parts.yaml", PARTS), ("all.yaml", ALL)):
        (tmp_path / name).write_text(textwrap.dedent(text))
    return teller


@pytest.mark.filterwarnings("always::palette_core.errors.PaletteWarning")
def test_each_part_is_a_file_that_holds_what_was_said(palette):
    code, out, err = palette("palettize", "net.py", "-o", "net", "-c", "all.yaml", "--json", *HOW)
    assert code == 0, err
    assert err.count(COPIES) == 1
    files = ["body.told", "embeddings.told", "head.told", "parts.json", "tail.told"]
    assert sorted(file.name for file in Path("net").iterdir()) == files
    sizes = sum(file.stat().st_size for file in Path("net").iterdir())
    assert json.loads(out)["totals"]["file_bytes"] == sizes
    found = {name: told(f"net/{name}.told") for name in ("embeddings", "body", "head", "tail")}
    assert all(each["metadata"] == {"by": "us"} for each in found.values())
    functions = {name: each["functions"]["main"] for name, each in found.items()}
    assert functions["embeddings"][1:3] == [{"input": "torch.int64[4]"}, "None"]
    assert functions["body"][1] == {"input": "torch.float32[4, 16]"}
    assert "'input': {0:" in functions["body"][2]
    assert "min=2, max=8" in functions["body"][2]
    assert functions["body"][3] == ["hidden"]
    assert functions["tail"][0] == "Tail"
    assert functions["tail"][1] == ["torch.float32[3, 16]"]
    assert "'x': {0:" in functions["tail"][2]


@pytest.mark.filterwarnings("always::palette_core.errors.PaletteWarning")
def test_a_checkpoint_becomes_the_same_files(palette):
    assert palette("palettize", "net.py", "-o", "net", "-c", "all.yaml", *HOW)[0] == 0
    assert palette("palettize", "net.py", "-o", "net.safetensors", "-c", "all.yaml")[0] == 0
    code, _, err = palette("export", "net.py", "net.safetensors", "-o", "again", *HOW)
    assert code == 0, err
    assert COPIES in err
    assert {file.name: file.read_bytes() for file in Path("net").iterdir()} == {
        file.name: file.read_bytes() for file in Path("again").iterdir()
    }
    # A folder of parts is replaced.
    assert palette("export", "net.py", "net.safetensors", "-o", "again", *HOW)[0] == 0


def test_plan_counts_the_copies_and_writes_nothing(palette, tmp_path):
    before = {file.name for file in tmp_path.iterdir()}
    how = ("--backend", "teller", "--parts", "parts.yaml", "-c", "all.yaml")
    code, out, err = palette("plan", "net.py", "--json", *how)
    assert code == 0, err
    found = json.loads(out)
    size = 32 * 16 // 2 + 16 * 4
    assert found["copies"] == [
        {"weight": "embed.weight", "parts": ["embeddings", "head", "tail"], "bytes": size},
        {"weight": "layers.2.weight", "parts": ["body", "tail"], "bytes": 16 * 16 // 2 + 16 * 4},
        {"weight": "layers.2.bias", "parts": ["body", "tail"], "bytes": 16 * 4},
    ]
    assert found["left_out"] == []
    code, out, _ = palette("plan", "net.py", *how)
    assert code == 0
    assert f"{COPIES} than in one file, {2 * size} bytes" in " ".join(out.split())
    assert {file.name for file in tmp_path.iterdir()} - before <= {"__pycache__"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "p.yaml: the file is empty; it has parts"),
        ("parts: {}", "p.yaml:1: parts: "),
        ("parts:\n  a: 3", "p.yaml:2: parts.a"),
        ("parts:\n  a:\n    module: x\n    modul: y", "p.yaml:4: parts.a.modul"),
        ("parts:\n  a: {}", "p.yaml: parts.a: give either modules"),
        ("parts:\n  a: {modules: embed, module: head}", "p.yaml: parts.a: give either modules"),
        ("parts:\n  a: {modules: embed, inputs: 'int64[4]'}", "parts.a.inputs: those of modules"),
        ("parts:\n  a: {modules: embed, dynamic: x}", "parts.a.dynamic: cannot read axis 'x'"),
        ("parts:\n  a: {module: net.py:Tail}", "p.yaml: parts.a.inputs: missing"),
        ("parts:\n  a: {module: hed, inputs: 'float32[1,16]'}", "parts.a.module: no module"),
        ("parts: {a: embe}", "part 'a': the model has no module 'embe'; did you mean"),
        ("parts: {a: [head, embed]}", "part 'a': embed does not run after head"),
        ("parts: {a: {modules: embed, dynamic: 'x:0'}}", "dynamic_shapes has 'x', which is no"),
    ],
)
@pytest.mark.parametrize("which", ["palettize", "plan"])
def test_what_is_wrong_is_told_before_any_work(
    palette, tmp_path, text, message, which, monkeypatch
):
    monkeypatch.setattr(
        "palette_core.engine.executor.Executor.run", lambda *a, **k: pytest.fail("clustered")
    )
    (tmp_path / "p.yaml").write_text(text)
    output = ("-o", "net") if which == "palettize" else ()
    code, _, err = palette(
        which, "net.py", *output, "--backend", "teller", "--parts", "p.yaml"
    )  # fmt: skip
    assert code == 2
    assert message in err
    assert not Path("net").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("palettize", "-o", "net"), "--parts goes to a folder, whose name tells no backend"),
        (("plan",), "--parts is for the export backend"),
        (("palettize", "-o", "n", "--backend", "packed"), "keeps all weights of a model"),
        (("palettize", "-o", "n.told", "--backend", "teller"), "give the path of a folder"),
        (("palettize", "-o", "n", "--backend", "teller", "--dynamic", "x:0"), "--dynamic is about"),
        (
            ("palettize", "-o", "n", "--backend", "teller", "--functions", "parts.yaml"),
            "--functions is about one file",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(palette, options, message):
    command, *rest = options
    code, _, err = palette(command, "net.py", *rest, "--parts", "parts.yaml")
    assert code == 2
    assert message in err
    assert not Path("n").exists()
