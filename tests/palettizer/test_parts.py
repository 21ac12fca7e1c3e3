"""Parts of a model in files of their own: chains, what is told of them, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from part_models import IDS, PARTS, SCALE, Whole, prepared
from part_models import programs as programs  # noqa: PLC0414 - a fixture
from torch import Tensor, nn

from palette_core import ExportFunction, ExportPart
from palette_core.errors import BackendError, ContractError, PaletteWarning
from palette_core.palettizer.life_cycle import State, state_of
from palette_core.testing.chains import run_chain


def run(path: Path, inputs: list[Tensor]) -> list[Tensor]:
    program = torch.export.load(path)
    names = program.graph_signature.user_inputs
    with torch.no_grad():
        result = program.module()(**dict(zip(names, inputs, strict=True)))
    return list(result) if isinstance(result, tuple) else [result]


def test_the_chain_returns_what_the_model_does(programs, tmp_path) -> None:
    model, palettizer = prepared()
    values = {name: buffer.clone() for name, buffer in model.named_buffers() if "kept" in name}
    with pytest.warns(PaletteWarning, match="embed.weight is in the files of embeddings and head"):
        folder = palettizer.export(
            tmp_path / "parts", (IDS, SCALE), backend="programs", parts=PARTS
        )  # fmt: skip
    (got,) = run_chain(folder, {"ids": IDS, "scale": SCALE}, run)["head"]
    assert all(torch.equal(model.get_buffer(name), value) for name, value in values.items())
    assert model.training
    with torch.no_grad():
        wanted = model.eval()(IDS, SCALE)
    torch.testing.assert_close(got, wanted)


def test_a_chain_with_other_files_or_a_gap_is_no_chain(programs, tmp_path) -> None:
    _, palettizer = prepared()
    how = {"backend": "programs", "parts": {"embeddings": "embed", "head": "head"}}
    with pytest.warns(PaletteWarning):
        folder = palettizer.export(tmp_path / "p", (IDS, SCALE), **how)
    with pytest.raises(ContractError, match="input of 'head' is computed by no file"):
        run_chain(folder, {"ids": IDS, "scale": SCALE}, run)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(ContractError, match=r"mine\.txt"):
        run_chain(folder, {"ids": IDS, "scale": SCALE}, run)


def test_what_the_files_hold_is_told(programs, tmp_path) -> None:
    _, palettizer = prepared()
    parts = {name: PARTS[name] for name in ("embeddings", "first", "head")}
    with pytest.warns(PaletteWarning) as told:
        folder = palettizer.export(tmp_path / "p", (IDS, SCALE), backend="programs", parts=parts)
    held = json.loads((folder / "parts.json").read_text())
    (copies,) = held["copies"]
    assert copies["weight"] == "embed.weight"
    assert copies["parts"] == ["embeddings", "head"]
    assert copies["bytes"] == 32 * 16 // 2 + 16 * 4  # indices, and a table of floats
    assert "layers.2.up.weight" in held["left_out"]
    assert "norm.weight" in held["left_out"]
    assert not any(name.startswith(("embed", "layers.0", "head")) for name in held["left_out"])
    texts = [str(each.message) for each in told if each.category is PaletteWarning]
    assert any("1 copy more than in one file, 320 bytes" in text for text in texts)
    assert any("in no part" in text and "norm.weight" in text for text in texts)
    assert any("computed by the model itself, and by no file: input of 'head'" in t for t in texts)
    assert all(each.filename == __file__ for each in told if each.category is PaletteWarning)
    assert palettizer.report is not None


def test_functions_of_ones_own_are_parts(programs, tmp_path) -> None:
    class Tail(nn.Module):
        def __init__(self, whole: Whole) -> None:
            super().__init__()
            self.norm, self.head = whole.norm, whole.head

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x))

    model, palettizer = prepared()
    x, rows = torch.randn(4, 16), torch.export.Dim("rows", min=2, max=8)
    parts = {"tail": ExportFunction((x,), {"x": {0: rows}}, Tail(model))}
    with pytest.warns(PaletteWarning, match="in no part"):
        folder = palettizer.export(tmp_path / "p", backend="programs", parts=parts)
    made = torch.export.load(folder / "tail.pt2").module()
    more = torch.randn(7, 16)
    torch.testing.assert_close(made(more), Tail(model).eval()(more))


def test_files_are_there_all_or_none(programs, tmp_path) -> None:
    model, palettizer = prepared()
    how = {"backend": "programs", "parts": PARTS}
    programs.fails_at = "rest"
    with pytest.raises(BackendError, match=r"part 'rest': .*no more"):
        palettizer.export(tmp_path / "p", (IDS, SCALE), **how)
    assert list(tmp_path.iterdir()) == []
    assert state_of(model) is State.PREPARED
    programs.fails_at = ""
    with pytest.warns(PaletteWarning):
        palettizer.export(tmp_path / "p", (IDS, SCALE), **how)
    before = {file.name: file.read_bytes() for file in (tmp_path / "p").iterdir()}
    programs.fails_at = "head"
    with pytest.raises(BackendError, match="part 'head'"):
        palettizer.export(tmp_path / "p", (IDS, SCALE), **how)
    assert {file.name: file.read_bytes() for file in (tmp_path / "p").iterdir()} == before
    programs.fails_at = ""
    with pytest.warns(PaletteWarning):
        palettizer.export(tmp_path / "p", (IDS, SCALE), backend="programs", parts={"e": "embed"})
    assert sorted(file.name for file in (tmp_path / "p").iterdir()) == ["e.pt2", "parts.json"]
    (tmp_path / "p" / "mine.txt").write_text("mine")
    with pytest.raises(BackendError, match=r"mine\.txt, which is no part"):
        palettizer.export(tmp_path / "p", (IDS, SCALE), **how)
    (tmp_path / "q").mkdir()
    with pytest.raises(BackendError, match="is no folder of parts"):
        palettizer.export(tmp_path / "q", (IDS, SCALE), **how)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"a": "layer"}, r"no module 'layer'.*layers"),
    "empty": ({"a": "layers[9:]"}, r"layers\[9:\] is empty; layers has 4 modules"),
    "twice": ({"a": ["layers[:2]", "layers.1"]}, r"layers\.1 and layers\.1 hold the same"),
    "inside": ({"a": ["layers", "layers.1"]}, "hold the same module"),
    "order": ({"a": ["layers.1", "layers.0"]}, r"layers\.0 does not run after layers\.1"),
    "never": ({"a": "layers"}, r"layers runs 0 times"),
    "no name": ({"a b": "embed"}, "no name of a file"),
    "one file": ({"A": "embed", "a": "head"}, "one file"),
    "none": ({}, "parts must be modules"),
    "number": ({"a": 3}, "must be names of modules"),
    "no text": ({"a": [3]}, "has no module"),
    "no modules": ({"a": []}, "must be names of modules"),
    "no module": ({"a": ExportFunction((IDS,))}, "needs its module here"),
    "names": ({"a": ExportPart("embed", output_names="x")}, "takes no output_names"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_part_is_refused(case: str, programs, tmp_path) -> None:
    parts, why = REFUSED[case]
    model, palettizer = prepared()
    with pytest.raises(BackendError, match=f"(?s){why}"):
        palettizer.export(tmp_path / "p", (IDS, SCALE), backend="programs", parts=parts)
    assert list(tmp_path.iterdir()) == []
    assert state_of(model) is State.PREPARED


def test_what_else_is_refused(programs, tmp_path) -> None:
    _, palettizer = prepared()
    inputs = (IDS, SCALE)
    for arguments, why in (
        ({"backend": None}, "name it"),
        ({"backend": "packed"}, "keeps all weights of a model"),
        ({"output_names": ("x",)}, "output_names of their own"),
        ({"metadata": {"a": "b"}}, "takes no metadata"),
        ({"path": tmp_path / "p.pt2"}, "give the path of a folder"),
        ({"example_inputs": None}, "give example_inputs"),
    ):
        how = {"path": tmp_path / "p", "example_inputs": inputs, "backend": "programs"}
        with pytest.raises(BackendError, match=why):
            palettizer.export(**{**how, "parts": PARTS, **arguments})
    assert list(tmp_path.iterdir()) == []


class Between(nn.Module):
    """What the model does between two layers of its own."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.how, self.factor = how, 1.0

    def forward(self, ids: Tensor, scale: Tensor) -> Tensor:
        x = self.layers[0](self.embed(ids))
        if self.how == "made":
            x = x * scale[:, :16]
        if self.how == "written":
            x.mul_(scale[:, :16])
        if self.how == "item":
            x[0] = 1.0
        if self.how == "twice":
            x = self.layers[0](x)
        return self.layers[1](x)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        *((how, "input of layers.1 is computed by the model itself, between layers.0 and it")
          for how in ("made", "written", "item")),
        ("twice", "layers.0 runs 2 times"),
    ],
)  # fmt: skip
def test_what_happens_between_modules_is_not_lost(how: str, why: str, programs, tmp_path) -> None:
    _, palettizer = prepared(Between(how))
    with pytest.raises(BackendError, match=why):
        palettizer.export(
            tmp_path / "p", (IDS, SCALE), backend="programs", parts={"a": "layers[:]"}
        )  # fmt: skip


def test_a_module_that_depends_on_more_than_its_arguments_is_refused(programs, tmp_path) -> None:
    class Reads(nn.Module):
        def __init__(self, owner: list[Any]) -> None:
            super().__init__()
            self.layer, self.owner = nn.Linear(16, 16), owner

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.owner[0].factor

    model = Between("")
    model.layers[1] = Reads([model])

    def set_factor(module: nn.Module, args: Any) -> None:
        module.factor = 3.0

    model.register_forward_pre_hook(set_factor)
    _, palettizer = prepared(model)
    with pytest.raises(BackendError, match="returns something else by itself"):
        palettizer.export(
            tmp_path / "p", (IDS, SCALE), backend="programs", parts={"a": "layers[:]"}
        )  # fmt: skip
