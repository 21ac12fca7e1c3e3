"""One meaning of inputs: alone, by position, by name, and whatever is no tensor among them."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from wrong_runtimes import backend

from palette_core import KMeansPalettizer, allocate, load_checkpoint
from palette_core.errors import PlanError
from palette_core.plugins import Refusal

X = torch.linspace(-1, 1, 24).reshape(3, 8)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, return_dict: bool = True):
        y = self.layer(x)
        y = y if mask is None else y * mask
        return {"y": y} if return_dict else y


KINDS = {
    "alone": X,
    "position": (X,),
    "list": [X],
    "nothing": (X, None),
    "name": {"x": X},
    "flag": {"x": X, "mask": None, "return_dict": False},
}


@pytest.mark.parametrize("inputs", KINDS.values(), ids=KINDS)
def test_every_call_takes_every_kind_of_input(inputs, tmp_path) -> None:
    allocated = allocate(Model(), None, inputs, target_bpw=6, batches=[inputs])
    assert [tensor.name for tensor in allocated.tensors] == ["layer.weight"]
    model = Model()
    palettizer = KMeansPalettizer(model)
    palettizer.calibrate([inputs], held_out=[inputs])
    palettizer.prepare(inputs, backend="packed")
    wanted = model(X, return_dict=False)
    path = palettizer.export(tmp_path / "m.safetensors", inputs, backend="packed")
    assert torch.equal(load_checkpoint(path, Model())(X, return_dict=False), wanted)


@pytest.mark.parametrize("inputs", [None, 3, "x", {1: X}, {X}], ids=str)
def test_what_is_no_input_is_refused_alike(inputs) -> None:
    said = set()
    for call in (
        lambda: KMeansPalettizer(Model()).prepare(inputs),
        lambda: KMeansPalettizer(Model()).calibrate([inputs]),
        lambda: allocate(Model(), None, X, target_bpw=6, batches=[inputs]),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        said.add(str(caught.value).partition(" must be ")[2])
    assert len(said) == 1


@pytest.mark.parametrize("batches", [X, {"x": X}, "x"], ids=["tensor", "mapping", "text"])
def test_one_batch_is_no_list_of_batches(batches) -> None:
    with pytest.raises(TypeError, match="batches must be an iterable of model inputs, such as"):
        KMeansPalettizer(Model()).calibrate(batches)


def test_backends_are_asked_about_what_will_be_exported(register) -> None:
    asked = []
    register(backend(check_program=lambda model, *more: asked.append(more) or ()))
    rows = {"x": {0: Dim("rows")}, "mask": None}
    KMeansPalettizer(Model()).prepare(X, backend="wrong")
    KMeansPalettizer(Model()).prepare({"x": X, "mask": None}, backend="wrong", dynamic_shapes=rows)
    allocate(Model(), None, X, target_bpw=6, backend="wrong", dynamic_shapes=({0: Dim.AUTO},))
    assert [(type(inputs), shapes) for inputs, shapes in asked] == [
        (tuple, None),
        (dict, rows),
        (tuple, ({0: Dim.AUTO},)),
    ]


def test_allocation_asks_about_operations_before_any_clustering(register) -> None:
    register(backend(check_program=lambda *asked: [Refusal("aten.lstm (in 'a')")]))
    with pytest.raises(PlanError, match=r"cannot export: aten\.lstm \(in 'a'\)"):
        allocate(Model(), None, X, target_bpw=6, backend="wrong")


@pytest.mark.parametrize("about", [{"backend_options": {"a": 1}}, {"dynamic_shapes": ({0: 1},)}])
def test_what_is_about_a_backend_wants_its_name(about) -> None:
    for call in (
        lambda: KMeansPalettizer(Model()).prepare(X, **about),
        lambda: KMeansPalettizer(Model()).make_plan(X, **about),
        lambda: allocate(Model(), None, X, target_bpw=6, **about),
    ):
        with pytest.raises(PlanError, match=f"{next(iter(about))} is about the export backend"):
            call()


def test_models_with_hooks_around_forward_are_prepared_where_they_are(tmp_path) -> None:
    def hooked() -> nn.Module:
        model = nn.Sequential(Model(), nn.ReLU())
        layer = model[0].layer
        forward = layer.forward
        # As libraries do that spread a model over devices: an instance's own forward.
        layer.forward = functools.partial(lambda _, x: forward(x.to(layer.weight.device)), layer)
        model[0].forward = functools.partial(Model.forward, model[0], return_dict=False)
        return model

    model = hooked()
    dense = model(X)
    palettizer = KMeansPalettizer(model)
    palettizer.calibrate([X], sequential=True)
    palettizer.prepare(X)
    assert [tensor.name for tensor in palettizer.plan] == ["0.layer.weight"]
    wanted = model(X)
    assert not torch.equal(wanted, dense)
    path = palettizer.export(tmp_path / "m.safetensors", backend="packed")
    assert torch.equal(load_checkpoint(path, hooked())(X), wanted)
