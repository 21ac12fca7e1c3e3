"""Graphs that are used again, and all that a model is traced anew for."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core.model.traced_before import TracedBefore


class Net(nn.Module):
    """Two layers, of which an option in an object says which is used."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.settings = SimpleNamespace(which=0)
        self.notes: list[int] = []
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x, scale=1.0):
        return self.parts[self.settings.which](x) * scale


INPUTS = (torch.randn(2, 4),)


def test_an_unchanged_model_has_the_graph_it_had() -> None:
    model = Net().eval()
    known = TracedBefore(model, INPUTS)
    assert known.graph_of(model, INPUTS) is known.graph
    assert known.graph_of(model, (INPUTS[0].clone(),)) is known.graph
    assert known.graph_of(model, INPUTS[0]) is known.graph
    model(*INPUTS)
    assert known.graph_of(model, INPUTS) is known.graph


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.settings, "which", 1),
        lambda model: setattr(model, "notes", [1]),
        lambda model: model.notes.append(1),
        lambda model: model.parts.append(nn.Linear(4, 4)),
        lambda model: setattr(model.parts, "0", nn.Linear(4, 4)),
        lambda model: setattr(model.parts[1], "weight", nn.Parameter(torch.ones(4, 4))),
        lambda model: model.count.add_(1),
        lambda model: nn.init.zeros_(model.parts[0].weight),
        lambda model: model.parts[0].register_forward_hook(lambda *_: None),
        lambda model: setattr(model, "forward", lambda x: x),
        lambda model: model.train(),
        lambda model: nn.utils.parametrizations.weight_norm(model.parts[0]),
    ],
)
def test_a_model_that_has_changed_is_traced_anew(change) -> None:
    model = Net().eval()
    known = TracedBefore(model, INPUTS)
    change(model)
    assert known.graph_of(model, INPUTS) is None


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.randn(2, 4),),
        (torch.randn(3, 4),),
        (INPUTS[0].double(),),
        (INPUTS[0], 2.0),
        {"x": INPUTS[0]},
        (nn.Parameter(INPUTS[0]),),
    ],
)
def test_other_inputs_are_traced_anew(inputs) -> None:
    model = Net().eval()
    assert TracedBefore(model, INPUTS).graph_of(model, inputs) is None


def test_other_inputs_without_values_are_traced_anew() -> None:
    model, (x,) = Net().eval().to("meta"), (INPUTS[0].to("meta"),)
    known = TracedBefore(model, (x,))
    assert known.graph_of(model, (x,)) is known.graph
    assert known.graph_of(model, (torch.empty_like(x),)) is None


def test_weights_that_have_no_version_are_traced_anew() -> None:
    with torch.inference_mode():
        model = Net().eval()
    assert TracedBefore(model, INPUTS).graph_of(model, INPUTS) is None


def test_inputs_that_were_written_to_are_traced_anew() -> None:
    model, x = Net().eval(), torch.ones(2, 4)
    known = TracedBefore(model, (x,))
    x.add_(1)
    assert known.graph_of(model, (x,)) is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda known: pickle.loads(pickle.dumps(known))])
def test_a_copy_knows_no_graph(copied) -> None:
    assert copied(TracedBefore(Net().eval(), INPUTS)) is None


@pytest.mark.parametrize("sequential", [False, True])
def test_preparing_after_calibration_runs_the_model_once_less(sequential) -> None:
    def runs(*, changed: bool) -> int:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
        rules = {"global_config": {"op_state_spec": {"weight": {"n_bits": 2, "algorithm": "lnq"}}}}
        config = KMeansPalettizerConfig.from_dict({"kmeans_palettization_config": rules})
        palettizer = KMeansPalettizer(model, config)
        batches = [(torch.randn(16, 8),) for _ in range(2)]
        count = [0]
        model[0].register_forward_pre_hook(lambda *_: count.__setitem__(0, count[0] + 1))
        palettizer.calibrate(batches, sequential=sequential)
        if changed:
            model[1].inplace = True
        palettizer.prepare(batches[0], show_progress=False)
        return count[0]

    assert runs(changed=True) - runs(changed=False) == 1
