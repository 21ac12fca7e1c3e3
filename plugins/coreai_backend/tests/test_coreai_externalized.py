"""Modules as graphs of their own in a file: run, read back, and what cannot be one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import coreai_support as support
import numpy as np
import pytest
import torch
from coreai.authoring import AIProgram
from torch import Tensor, nn

from coreai_backend import read_weights
from palette_core import ExportFunction, KMeansPalettizer, KMeansPalettizerConfig
from palette_core.errors import BackendError, PlanError

IDS = torch.tensor([[3, 1, 4, 1, 5]])


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(0.5 + torch.rand(width)), 1e-5

    def forward(self, x):  # nothing is said of its arguments, as in many models
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Block(nn.Module):
    """A layer with an operation that coreai-torch lacks, and that we write in others."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = Norm(32), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor, mask=None) -> Tensor:
        return x + self.down(torch.cummax(self.up(self.norm(x)), -1)[0])


class Pair(nn.Module):
    """A module that returns two tensors, and a state that it counts in."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.linear = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.count += 1
        return self.linear(x) * self.count, x


class Net(nn.Module):
    def __init__(self, *, counts: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 32)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(32, 64, bias=False)
        self.head.weight = self.embed.weight
        self.pair = Pair() if counts else nn.Identity()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in (*self.layers, self.layers[0]):  # one of them twice
            x = layer(x)
        made = self.pair(x)
        return self.head(made[0] if isinstance(made, tuple) else made)


def prepared(**arguments: Any) -> tuple[Net, KMeansPalettizer]:
    torch.manual_seed(0)
    model = Net(**arguments).eval()
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig.presets.w4_all())
    palettizer.prepare((IDS,))
    return model, palettizer


def graphs(path: Path) -> tuple[int, str]:
    """Return how many graphs a file has beside its functions, and its text."""
    text = str(AIProgram._load_bytecode(path / "main.mlirb"))
    return text.count("coreai.graph ") - 1, text


def traces_of(model: nn.Module) -> list[str]:
    """Return what is left in modules of operators that stood in their place."""
    left = {"forward", "_original_forward"}
    return [
        key
        for module in model.modules()
        for key in vars(module)
        if key in left or "externalize" in key
    ]


# Options, calls, and graphs: composites that are alike are one.
CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "by name": ({"externalize": ["layers.1", "layers.2"]}, 2, 2),
    "called twice": ({"externalize": ["layers.0"]}, 2, 2),
    "by class": ({"externalize": ["Block"]}, 4, 4),
    "one in another": ({"externalize": ["layers.1", "layers.1.norm"]}, 2, 2),
    "palettized alone": ({"externalize": ["layers.1.up"]}, 1, 1),
    "composites": (
        {"composites": {"Norm": {"operation": "rms_norm", "attributes": ["eps"]}}},
        4,
        3,
    ),
    "both": ({"externalize": ["Block"], "composites": {"Norm": {"operation": "rms_norm"}}}, 8, 7),
    "none": ({}, 0, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_the_file_returns_what_the_model_does(case: str, tmp_path: Path) -> None:
    options, calls, count = CASES[case]
    model, palettizer = prepared()
    path = palettizer.export(tmp_path / "m.aimodel", (IDS,), backend_options=options)
    with torch.no_grad():
        wanted = model(IDS).numpy()
    np.testing.assert_allclose(support.run_file(path, IDS)[0], wanted, atol=1e-4)
    found, text = graphs(path)
    assert found == count
    assert text.count("coreai.invoke") == calls
    assert ("rms_norm" in text) == ("composites" in options)
    # Weights are read back by name and value, and stored once.
    weights = support.palettes(model)
    stored = read_weights(path)
    assert stored.keys() == weights.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(stored[name], weight.decode().numpy())
    plain = palettizer.export(tmp_path / "plain.aimodel", (IDS,))
    indices = support.summary(plain)[0]["UInt4"]
    assert (
        support.summary(path)[0]["UInt4"]
        == indices
        == sum(w.shape.numel() for w in stored_of(model))
    )


def stored_of(model: nn.Module) -> list[Tensor]:
    return [weight.decode() for weight in support.palettes(model).values()]


def test_a_model_is_left_as_it_was_and_lengths_may_vary(tmp_path: Path) -> None:
    model, palettizer = prepared()
    length = torch.export.Dim("length", min=2, max=16)
    path = palettizer.export(
        tmp_path / "m.aimodel",
        (IDS,),
        dynamic_shapes={"ids": {1: length}},
        backend_options={"externalize": ["layers.1", "layers.2.norm"]},
    )
    assert traces_of(model) == []
    assert graphs(path)[0] == 2
    longer = torch.arange(11)[None]
    with torch.no_grad():
        wanted = model(longer).numpy()
    np.testing.assert_allclose(support.run_file(path, longer)[0], wanted, atol=1e-4)
    copy.deepcopy(model)


def test_each_of_several_functions_calls_its_own_in_half_precision(tmp_path: Path) -> None:
    class View(nn.Module):
        def __init__(self, net: Net) -> None:
            super().__init__()
            self.net = net

        def forward(self, ids: Tensor) -> Tensor:
            return self.net(ids) * 2

    model, palettizer = prepared()
    functions = {
        "main": ExportFunction((IDS,)),
        "twice": ExportFunction((IDS,), module=View(model)),
    }
    path = palettizer.export(
        tmp_path / "m.aimodel",
        functions=functions,
        backend_options={"externalize": ["Norm"], "compute_precision": "float16"},
    )
    with torch.no_grad():
        wanted = model(IDS).numpy()
    found = support.run_file(path, IDS)[0]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=0.1)
    assert read_weights(path).keys() == support.palettes(model).keys()


def test_names_may_be_numbers_and_arguments_keywords(tmp_path: Path) -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(32, 32)

        def forward(self, x, bias=None, scale=None):
            x = self.linear(x)
            return x if scale is None else x * scale

    class Inside(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x), scale=x)

    torch.manual_seed(0)
    model, x = Inside(nn.Linear(32, 32), Weighted()).eval(), torch.randn(4, 32)
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig.presets.w4())
    palettizer.prepare((x,))
    path = palettizer.export(
        tmp_path / "m.aimodel", (x,), backend_options={"externalize": ["0", "1"]}
    )
    with torch.no_grad():
        wanted = model(x).numpy()
    np.testing.assert_allclose(support.run_file(path, x)[0], wanted, atol=1e-5)
    assert graphs(path)[0] == 2
    again = palettizer.export(
        tmp_path / "again.aimodel", (x,), backend_options={"externalize": ["0", "1"]}
    )
    assert (again / "main.mlirb").read_bytes() == (path / "main.mlirb").read_bytes()


def test_planning_refuses_what_export_does() -> None:
    palettizer = KMeansPalettizer(Net(counts=True), KMeansPalettizerConfig.presets.w4_all())
    with pytest.raises(PlanError, match=r"externalize: pair uses a state, count"):
        palettizer.make_plan(
            (IDS,), backend="coreai", backend_options={"externalize": ["pair"]}
        )  # fmt: skip


class Reads(nn.Module):
    """A module that reads a state which another writes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.count


class Odd(nn.Module):
    def forward(self, x: Tensor, times: list[str]) -> Tensor:
        return x * len(times)


class Tells(nn.Module):
    def forward(self, x: Tensor):
        return {"x": x * 2}


class Others(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.pair = nn.Linear(32, 32), Pair()
        self.reads, self.odd, self.tells = Reads(), Odd(), Tells()
        self.idle = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        self.reads.count += 1
        made = self.pair(self.first(x))[0] + self.reads(x)
        return self.tells(self.odd(made, ["a", "b"]))["x"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"externalize": ["frst"]}, r"called 'frst'; did you mean 'first'"),
        ({"externalize": ["idle"]}, "does not call idle"),
        ({"externalize": ["pair"]}, "pair uses a state, count"),
        ({"externalize": ["reads"]}, r"reads uses a state, count"),
        ({"externalize": ["odd"]}, "odd: it cannot be a graph of its own: .*infer_schema"),
        ({"externalize": ["tells"]}, "cannot"),
        (
            {"composites": {"first": {"operation": "mm", "attributes": ["in_feature"]}}},
            r"composites: first has no number or text 'in_feature'; did you mean 'in_features'",
        ),
    ],
)
def test_what_cannot_be_a_graph_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, x = Others().eval(), torch.randn(4, 32)
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig.presets.w4())
    palettizer.prepare((x,))
    with pytest.raises(BackendError, match=f"(?s){message}"):
        palettizer.export(tmp_path / "m.aimodel", (x,), backend_options=options)
    assert traces_of(model) == []
    assert list(tmp_path.iterdir()) == []
    palettizer.export(tmp_path / "m.aimodel", (x,), backend_options={"externalize": ["first"]})
