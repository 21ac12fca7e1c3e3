"""Functions, names and metadata out of a file, with a backend that writes what it was told."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from telling import teller as teller  # noqa: PLC0414 - a fixture
from telling import told

FUNCTIONS = """
    functions:
      both:
        dynamic: [left:0=1..8, right:0]
      again:
      keyword:
        inputs: {left: "float32[1,16]", right: "float16[1,16]"}
        output_names: {sum: next}
      inner:
        module: inner
        inputs: float32[3,16]
        dynamic: input:0
      twice:
        module: fac.py:Twice
        inputs: fac.py:one
    input_names: {left: first}
    output_names: scores
    metadata: {context: "16", by: them}
"""


@pytest.fixture
def palette(teller, tmp_path):
    """Run the command where ``fac.py`` and the file are and the backend is installed."""
    (tmp_path / "functions.yaml").write_text(textwrap.dedent(FUNCTIONS))
    return teller


def test_what_the_file_says_reaches_the_backend(palette):
    how = ("--functions", "functions.yaml", "--metadata", "by=us", "--metadata", "a = b=c")
    code, _, err = palette("palettize", "fac.py", "-o", "m.told", *how)
    assert code == 0, err
    found = told("m.told")
    assert found["metadata"] == {"context": "16", "by": "us", "a": " b=c"}
    assert found["names"] == [{"left": "first"}, ["scores"], None]
    functions = found["functions"]
    assert list(functions) == ["both", "again", "keyword", "inner", "twice"]
    assert [module.removeprefix("Parametrized") for module, *_ in functions.values()] == [
        "Two"
    ] * 3 + ["Linear", "Twice"]
    assert functions["both"][1] == functions["again"][1] == ["torch.float32[2, 16]"] * 2
    assert functions["again"][2:] == ["None", None]
    for part in ("'left': {0:", "min=1, max=8", "'right': {0:"):
        assert part in functions["both"][2]
    wanted = {"left": "torch.float32[1, 16]", "right": "torch.float16[1, 16]"}
    assert functions["keyword"][1] == wanted
    assert functions["keyword"][3] == {"sum": "next"}
    assert functions["inner"][1] == ["torch.float32[3, 16]"]
    assert "'input': {0:" in functions["inner"][2]
    assert functions["twice"][1] == ["torch.float32[1, 16]"]


def test_a_checkpoint_is_exported_by_the_same_file(palette):
    assert palette("palettize", "fac.py", "-o", "m.safetensors")[0] == 0
    how = ("--functions", "functions.yaml")
    assert palette("export", "fac.py", "m.safetensors", "-o", "a.told", *how)[0] == 0
    assert palette("palettize", "fac.py", "-o", "b.told", *how)[0] == 0
    assert told("a.told") == told("b.told")


def test_names_alone_are_of_the_one_function(palette, tmp_path):
    (tmp_path / "names.yaml").write_text("output_names: [scores]\n")
    how = ("--functions", "names.yaml", "--dynamic", "left:0", "--dynamic", "right:0")
    code, _, err = palette("palettize", "fac.py", "-o", "m.told", *how)
    assert code == 0, err
    assert list(told("m.told")["functions"]) == ["main"]
    assert "'right': {0:" in told("m.told")["functions"]["main"][2]
    assert told("m.told")["names"][1] == ["scores"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.yaml: the file is empty"),
        ("functions: [a]", "f.yaml:1: functions: Input should be a mapping, got ['a']"),
        ("functions:\n  a:\n    input: x", "f.yaml:3: functions.a.input:"),
        ("functions:\n  a:\n    inputs: 3", "f.yaml:3: functions.a.inputs"),
        ("metadata:\n  context: 16", "f.yaml:2: metadata.context: Input should be a valid string"),
        ("functions:\n  a b:", "'a b' is no name of a function"),
        (
            "functions:\n  a:\n    module: iner\n    inputs: float32[1,16]",
            "f.yaml: functions.a.module: no module of the model is called 'iner'",
        ),
        (
            "functions:\n  a:\n    module: fac.py:broken\n    inputs: fac.py:one",
            "functions.a.module: fac.py:broken failed: KeyError: 'why'",
        ),
        (
            "functions:\n  a:\n    module: fac.py:one\n    inputs: fac.py:one",
            "functions.a.module: fac.py:one failed: TypeError",
        ),
        ("functions:\n  a:\n    module: inner", "functions.a.inputs: missing"),
        ("functions:\n  a:\n    inputs: float33[1]", "functions.a.inputs: input 'float33[1]'"),
        ("functions:\n  a:\n    inputs: fac.py:nothing", "no callable 'nothing'"),
        (
            "functions:\n  a:\n    inputs: float32[1,16]",
            "functions.a.inputs: missing a required argument: 'right'",
        ),
        ("functions:\n  a:\n    dynamic: left", "functions.a.dynamic: cannot read axis 'left'"),
        ("functions:\n  a:\n    dynamic: lef:0", "axis of lef: the model has no such input"),
        ("functions: {a: {}, a: {}}", "key 'a' is there twice"),
    ],
)
def test_what_is_wrong_is_told_before_any_work(palette, tmp_path, text, message, monkeypatch):
    monkeypatch.setattr(
        "palette_core.engine.executor.Executor.run", lambda *a, **k: pytest.fail("clustered")
    )
    (tmp_path / "f.yaml").write_text(text)
    code, _, err = palette("palettize", "fac.py", "-o", "m.told", "--functions", "f.yaml")
    assert code == 2
    assert message in err
    assert not Path("m.told").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "m.told", "--functions", "none.yaml"), "none.yaml: No such file"),
        (("-o", "m.told", "--metadata", "a"), "cannot read --metadata 'a'"),
        (("-o", "m.told", "--metadata", "a=1", "--metadata", "a=2"), "each name once"),
        (
            ("-o", "m.safetensors", "--functions", "functions.yaml"),
            "--functions: backend 'packed' takes no functions",
        ),
        (("-o", "m.pt", "--backend", "torch", "--metadata", "a=1"), "--metadata: backend 'torch'"),
        (
            ("-o", "m.told", "--functions", "functions.yaml", "--dynamic", "left:0"),
            "write dynamic for each in --functions",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(palette, options, message):
    code, _, err = palette("palettize", "fac.py", *options)
    assert code == 2
    assert message in err
