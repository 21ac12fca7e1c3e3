"""Several functions in a package, and the names and metadata of the user's, read and evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from mil_evaluator import Package
from torch import Tensor, nn

from coreml_backend import keep_names, read_weights
from palette_core import ExportFunction, KMeansPalettizer
from palette_core.errors import BackendError

X = torch.linspace(-1, 1, 24).reshape(3, 8)
EXACT = {"compute_precision": "float32"}


class Remembering(nn.Module):
    """Two layers, and the sum of what it was given in a state with capitals."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 512), nn.Linear(512, 64)
        self.attn = nn.Module()
        self.register_buffer("calls", torch.zeros(1))
        self.attn.register_buffer("keyCache", torch.zeros(8))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.attn.keyCache.copy_(self.attn.keyCache + x.sum(0))
        self.calls += 1
        return {"scores": self.second(self.first(x + self.attn.keyCache)), "rows": x.sum(1)}


class FirstOnly(nn.Module):
    def __init__(self, model: Remembering) -> None:
        super().__init__()
        self.inside = model

    def forward(self, rows: Tensor) -> Tensor:
        return self.inside.first(rows)


def prepared() -> tuple[Remembering, KMeansPalettizer]:
    model = Remembering().eval()
    palettizer = KMeansPalettizer(model)
    palettizer.prepare((X,), backend="coreml")
    return model, palettizer


def function(path: Path, name: str) -> Any:
    described = ct.models.MLModel(str(path), skip_model_load=True).get_spec().description
    return next(each for each in described.functions if each.name == name)


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*.bin"))


def test_functions_share_their_weights_and_are_called_by_names(tmp_path: Path) -> None:
    model, palettizer = prepared()
    how: dict[str, Any] = {"backend": "coreml", "backend_options": EXACT}
    one = palettizer.export(tmp_path / "one.mlpackage", (X,), **how)
    path = palettizer.export(
        tmp_path / "all.mlpackage",
        functions={
            "prefill": ExportFunction(
                (X,), dynamic_shapes={"x": {0: torch.export.Dim("rows", min=2, max=16)}}
            ),
            "decode": ExportFunction({"x": X[:1]}, output_names={"scores": "next"}),
            "first": ExportFunction((X,), module=FirstOnly(model), output_names="hidden"),
        },
        input_names={"x": "features", "rows": "features"},
        output_names={"scores": "logits"},
        state_names={"attn.keyCache": "keyCache"},
        metadata={"context": "16"},
        **how,
    )
    assert size(path) < size(one) + 4_000  # of 17 kB: constants of operations, no weights
    for name, outputs in (
        ("prefill", ["logits", "sum_1"]), ("decode", ["next", "sum_1"]), ("first", ["hidden"]),
    ):  # fmt: skip
        found = function(path, name)
        assert [each.name for each in found.input] == ["features"]
        assert next(each.name for each in found.output) == outputs[0]
        wanted = [] if name == "first" else ["calls", "keyCache"]
        assert [each.name for each in found.state] == wanted
        got = Package(path, name)([X[: 1 if name == "decode" else 3].numpy()])
        with torch.no_grad():
            model.attn.keyCache.zero_()
            x = X[: 1 if name == "decode" else 3]
            right = model.first(x) if name == "first" else model(x)["scores"]
        np.testing.assert_allclose(got[outputs[0]], right, rtol=1e-4, atol=1e-4)
    weights = read_weights(path)
    assert set(weights) == {"first.weight", "second.weight"}
    np.testing.assert_array_equal(weights["first.weight"], model.first.weight.detach())
    package = ct.models.MLModel(str(path), skip_model_load=True)
    assert package.user_defined_metadata["context"] == "16"
    assert package.get_spec().description.defaultFunctionName == "prefill"


def test_names_survive_what_coremltools_does_with_packages(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.ReLU())]
    palettizer = KMeansPalettizer(nn.Sequential(*layers).eval())
    x = torch.ones(1, 64)
    model = palettizer.prepare(x)
    one = palettizer.export(tmp_path / "one.mlpackage", x, metadata={"by": "us"})
    ends = {"main": ExportFunction(x, module=nn.Sequential(model[0], model[6]))}
    two = palettizer.export(tmp_path / "two.mlpackage", functions=ends)
    joined = ct.utils.MultiFunctionDescriptor()
    for name, path in (("all", one), ("ends", two)):
        joined.add_function(str(path), "main", name)
    joined.default_function_name = "all"
    made = [tmp_path / "joined.mlpackage"]
    ct.utils.save_multifunction(joined, str(made[0]))
    ct.models.utils.bisect_model(str(one), str(tmp_path), check_output_correctness=False)
    made += sorted(tmp_path.glob("*chunk*"))
    wanted = read_weights(one)
    assert set(wanted) == {f"{at}.weight" for at in (0, 2, 4, 6)}
    found: list[str] = []
    for path in made:
        keep_names(path, one, two)
        got = read_weights(path)
        found += got
        assert all(np.array_equal(got[name], wanted[name]) for name in got)
        package = ct.models.MLModel(str(path), skip_model_load=True)
        assert package.user_defined_metadata["by"] == "us"
    assert len(made) == 3
    assert sorted(found) == sorted([*wanted, *wanted])


class Writing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 512)

    def forward(self, x: Tensor) -> Tensor:
        x.add_(1)
        return self.layer(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_names": {"X": "a"}}, "'X' is not known.*there are x"),
        (
            {"state_names": {"keyCache": "a"}},
            r"mean 'attn\.keyCache'.*there are calls, attn",
        ),
        ({"state_names": ("a",)}, "1 names, .* for 2"),
        (
            {
                "functions": {"decode": ExportFunction((X,))},
                "backend_options": {"deployment_target": "iOS17"},
            },
            "iOS17 loads packages of one function 'main', and not of decode",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    inputs = None if "functions" in arguments else (X,)
    with pytest.raises(BackendError, match=message):
        prepared()[1].export(tmp_path / "m.mlpackage", inputs, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_are_written_to_are_refused(tmp_path: Path) -> None:
    palettizer = KMeansPalettizer(Writing().eval())
    palettizer.prepare((X.clone(),))
    with pytest.raises(BackendError, match=r"'main' writes to its input 'x'.*register_buffer"):
        palettizer.export(tmp_path / "m.mlpackage", (X.clone(),))


@pytest.mark.parametrize("show", [False, True])
def test_bars_are_drawn_where_they_are_asked_for(
    show: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    palettizer = KMeansPalettizer(nn.Sequential(nn.Linear(8, 512)).eval())
    palettizer.prepare((X,))
    functions = {"one": ExportFunction((X,)), "two": ExportFunction((X,))}
    how: dict[str, Any] = {"backend_options": {"show_progress": show}}
    palettizer.export(tmp_path / "m.mlpackage", functions=functions, **how)
    assert ("passes/s" in capsys.readouterr().err) is show
