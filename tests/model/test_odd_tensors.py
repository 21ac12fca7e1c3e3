"""Weights and modules that no palette can stand for: left alone with a reason, unchanged."""

import copy
import re

import pytest
import torch
from torch import Tensor, nn

from palette_core import KMeansPalettizer, PaletteWarning
from palette_core.errors import PlanError
from palette_core.model import trace


class Stored(Tensor):
    """A tensor that keeps its values in its own way, as quantized ones do."""

    @staticmethod
    def __new__(cls, values: Tensor) -> "Stored":
        return Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)

    def __init__(self, values: Tensor) -> None:
        self.values_ = values

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        plain = [a.values_ if isinstance(a, Stored) else a for a in args]
        if func is torch.ops.aten.detach.default:
            return Stored(plain[0])
        return func(*plain, **(kwargs or {}))


class Named(nn.Parameter):
    """A parameter with a class of its own, that computes as every other."""


class Frozen(nn.Linear):
    """Refuses that anything is assigned to it once it is made."""

    def __setattr__(self, name, value):
        if name == "__class__":
            raise AttributeError("frozen")
        super().__setattr__(name, value)


class Final(nn.Linear):
    """Refuses to be derived from."""

    def __init_subclass__(cls, **kwargs):
        raise TypeError("Final cannot be derived from")


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(8, 8, bias=False)
    layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    return layer


def made_in_inference_mode() -> nn.Linear:
    with torch.inference_mode():
        return nn.Linear(8, 8, bias=False)


ODD = {
    "it is sparse (sparse_csr); make it dense first": lambda: linear(torch.eye(8).to_sparse_csr()),
    "it is a Stored, a tensor class": lambda: linear(Stored(torch.randn(8, 8))),
    "it was made in torch.inference_mode": made_in_inference_mode,
    "Frozen refuses that its class is replaced": lambda: Frozen(8, 8, bias=False),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize("reason", ODD)
def test_what_no_palette_can_stand_for_is_left_alone_with_a_note(reason):
    model = nn.Sequential(nn.Linear(8, 8), ODD[reason]())
    weight, x = model[1].weight, torch.randn(2, 8)
    palettizer = KMeansPalettizer(model, None)
    with pytest.warns(PaletteWarning, match=f"1.weight .* stays dense.*{re.escape(reason)}"):
        palettizer.prepare((x,), show_progress=False)
    assert [tensor.name for tensor in palettizer.plan] == ["0.weight"]
    assert model[1].weight is weight
    with torch.no_grad():
        model(x)


def test_parameters_of_a_class_of_their_own_are_palettized_where_they_compute_as_others():
    model = nn.Sequential(linear(Named(torch.randn(8, 8))))
    palettizer = KMeansPalettizer(model, None)
    palettizer.prepare((torch.randn(2, 8),), show_progress=False)
    assert [tensor.name for tensor in palettizer.plan] == ["0.weight"]


def test_a_class_that_cannot_be_derived_from_is_an_error_and_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(8, 8), Final(8, 8))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(PlanError, match=r"'weight' of Final .* cannot be derived from"):
        KMeansPalettizer(model, None).prepare((torch.randn(2, 8),), show_progress=False)
    assert type(model[0]) is nn.Linear
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Byol(nn.Module):
    """Makes its target network of the online one in the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.target = None
        self.others: list[nn.Module] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.target is None:
            self.target = copy.deepcopy(self.online)
            self.others += [copy.deepcopy(self), copy.copy(self.online[0])]
        return self.online(x) - self.target(x)


def test_copies_that_forward_makes_of_modules_carry_no_hooks():
    model, x = Byol(), torch.randn(2, 8)
    graph = trace(model, (x,))
    copies = [model.target, *model.others]
    for module in [model, *(part for made in copies for part in made.modules())]:
        for hooks in ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_always_called"):
            assert not getattr(module, hooks)
    model(x)
    model.others[0](x)
    [weight] = [tensor for tensor in graph.tensors if tensor.name == "online.0.weight"]
    assert [use.op_name for use in weight.uses] == ["online.0.linear"]
