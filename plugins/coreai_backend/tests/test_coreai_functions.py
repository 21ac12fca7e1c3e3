"""Several functions in a file, and the names and metadata of the user's, read and run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import coreai_support as support
import numpy as np
import pytest
import torch
from coreai.authoring import AIModelAsset
from coreai.runtime import NDArray
from torch import Tensor, nn

from coreai_backend import read_weights
from palette_core import ExportFunction, KMeansPalettizer, PalettizationSpec
from palette_core.errors import BackendError

X = torch.linspace(-1, 1, 24).reshape(3, 8)


class Remembering(nn.Module):
    """Two layers, and the sum of what it was given in a state with capitals."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 512), nn.Linear(512, 4)
        self.register_buffer("keyCache", torch.zeros(8))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        self.keyCache.copy_(self.keyCache + x.sum(0))
        return {"scores": self.second(self.first(x + self.keyCache)), "rows": x.sum(1)}


class FirstOnly(nn.Module):
    def __init__(self, model: Remembering) -> None:
        super().__init__()
        self.inside = model

    def forward(self, rows: Tensor) -> Tensor:
        return self.inside.first(rows)


def palettized(**arguments: Any) -> tuple[Remembering, KMeansPalettizer]:
    model = Remembering().eval()
    palettizer = KMeansPalettizer(model, support.config(PalettizationSpec(n_bits=4)))
    palettizer.prepare((X,), **arguments)
    return model, palettizer


def run(path: Path, name: str, inputs: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    async def inside() -> dict[str, Any]:
        async with AIModelAsset.load(path).executable() as loaded:
            function = loaded.load_function(name)
            given = {key: NDArray(np.asarray(value, np.float32)) for key, value in inputs.items()}
            outputs = await function(inputs=given, state=state)
            return {key: np.array(outputs[key].numpy()) for key in function.desc.output_names}

    return asyncio.run(inside())


def test_functions_share_their_weights_and_run_by_their_names(tmp_path: Path) -> None:
    model, palettizer = palettized()
    one = palettizer.export(tmp_path / "one.aimodel", (X,))
    rows = torch.export.Dim("rows", min=2, max=16)
    path = palettizer.export(
        tmp_path / "two.aimodel",
        backend="coreai",
        functions={
            "prefill": ExportFunction((X,), dynamic_shapes={"x": {0: rows}}),
            "decode": ExportFunction({"x": X[:1]}, output_names={"scores": "next"}),
            "first": ExportFunction((X,), module=FirstOnly(model), output_names="hidden"),
        },
        input_names={"x": "features", "rows": "features"},
        output_names={"scores": "logits"},
        state_names={"keyCache": "keyCache", "calls": "count"},
        metadata={"context": "16", "über": "ja"},
    )
    sizes = [(p / "main.mlirb").stat().st_size for p in (one, path)]
    assert sizes[1] - sizes[0] < 12_000, sizes  # 3 kB of indices, once; the rest is operations
    said = AIModelAsset.load(path).metadata.creator_defined_metadata
    assert said == {"context": "16", "über": "ja"}
    assert set(read_weights(path)) == {"first.weight", "second.weight"}
    state = {
        "keyCache": NDArray(np.zeros(8, np.float32)),
        "count": NDArray(np.zeros(1, np.float32)),
    }
    for name, x, output in (("prefill", X, "logits"), ("decode", X[1:2], "next")):
        got = run(path, name, {"features": x}, state)
        with torch.no_grad():
            wanted = model(x)
        assert len(got) == 2
        assert np.abs(got[output] - wanted["scores"].numpy()).max() < 1e-5
        assert np.allclose(state["keyCache"].numpy(), model.keyCache)
        assert state["count"].numpy() == model.calls.numpy()
    hidden = run(path, "first", {"features": X}, {})["hidden"]
    assert np.abs(hidden - model.first(X).detach().numpy()).max() < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_names": ("a", "b")}, r"input_names: 2 names, \['a', 'b'\], for 1, \['x'\]"),
        ({"input_names": {"X": "a"}}, "'X' is not known.*there are x"),
        ({"output_names": {"score": "a"}}, "did you mean 'scores'.*there are scores, rows"),
        ({"state_names": {"cache": "a"}}, "there are keyCache, calls"),
        ({"state_names": ("a", "b", "c")}, "3 names"),
        ({"state_names": ("a", "a")}, "'a' is there twice"),
        ({"input_names": ("a",), "state_names": ("a", "b")}, "both be called 'a'"),
        ({"output_names": ("a", "")}, "'' is no name"),
        ({"metadata": {"a": 1}}, "metadata must be texts"),
        ({"functions": {}}, "functions must be ExportFunctions"),
        ({"functions": {"a b": ExportFunction((X,))}}, "'a b' is no name of a function"),
        ({"functions": {"a": X}}, "function 'a' must be an ExportFunction"),
        ({"functions": {"a": ExportFunction(None)}}, "needs example_inputs"),
        (
            {"functions": {"a": ExportFunction((X,), state_names={"c": "a"})}},
            "state_names: 'c' is not known",
        ),
        (
            {"functions": {"a": ExportFunction((X,), module=palettized()[0])}},
            "first.weight of its module is a palettized weight of another model",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    inputs = None if "functions" in arguments else (X,)
    with pytest.raises(BackendError, match=message):
        palettized()[1].export(tmp_path / "m.aimodel", inputs, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_parts_in_files_of_their_own_chain(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)]
    model = nn.Sequential(nn.Linear(8, 8), *layers, nn.Linear(8, 8)).eval()
    model[4].weight = model[0].weight  # tied: in the files of both
    palettizer = KMeansPalettizer(model, support.config(PalettizationSpec(n_bits=4)))
    prepared = palettizer.prepare((X,))
    with torch.no_grad():
        wanted = prepared(X).numpy()
    held, x = [], X.numpy()
    for name, part in (("first", model[0]), ("body", model[1:4]), ("head", model[4])):
        path = tmp_path / f"{name}.aimodel"
        palettizer.export(path, functions={"main": ExportFunction((X,), module=part)})
        held.append(sorted(read_weights(path)))
        (x,) = run(path, "main", {"input": x}, {}).values()
    assert np.abs(x - wanted).max() < 1e-5
    assert held == [["0.weight"], ["1.0.weight", "2.0.weight", "3.0.weight"], ["0.weight"]]
