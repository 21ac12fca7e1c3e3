"""Tracing leaves the model, its inputs' kinds aside, and the process as they were."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, UserDict

import numpy as np
import pytest
import torch
from torch import nn

from palette_core import KMeansPalettizer
from palette_core.errors import PaletteError, TracingError
from palette_core.model import call_arguments, trace


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything that a run could change, by value and by identity."""
    return {
        "state": {n: t.clone() for n, t in model.state_dict(keep_vars=False).items()},
        "ids": {n: id(t) for n, t in [*model.named_parameters(), *model.named_buffers()]},
        "buffers": [dict(m._buffers).keys() for m in model.modules()],
        "training": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grads": [p.grad is None for p in model.parameters()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_always_called))
            for m in model.modules()
        ],
    }


def assert_unchanged(model: nn.Module, before: dict[str, object]) -> None:
    after = snapshot(model)
    old, new = before.pop("state"), after.pop("state")
    assert after == before
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        assert torch.equal(tensor, new[name]), name


class Busy(nn.Module):
    """Does to itself in forward what models do, then fails if told to."""

    def __init__(self, fail: bool = False):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.lookup = nn.Embedding(8, 4, max_norm=0.1)
        self.lin = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("through_data", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("cache", None)
        self.fail = fail

    def forward(self, x):
        self.calls += 1
        self.through_data.data.fill_(7)
        self.replaced = self.replaced + 1
        self.cache = x.detach()
        random.random()
        np.random.rand()
        torch.rand(3)
        self.norm.running_mean.add_(1)
        x = self.frozen(self.lin(self.drop(self.norm(x))))
        x = x + self.lookup(torch.tensor([1]))
        if self.fail:
            raise ValueError("no such luck")
        return x


def busy(fail: bool = False) -> Busy:
    model = Busy(fail)
    model.train()
    model.frozen.eval()
    return model


@pytest.mark.usefixtures("untouched_rng")
@pytest.mark.parametrize("training", [True, False])
def test_everything_is_as_before(training):
    state = torch.get_rng_state()
    model = busy().train(training)
    before = snapshot(model)
    inputs = torch.full((3, 4), 0.5)
    trace(model, (inputs,))
    assert_unchanged(model, before)
    assert model.cache is None
    assert torch.equal(inputs, torch.full((3, 4), 0.5))
    torch.set_rng_state(state)


@pytest.mark.parametrize("kwargs", [False, True])
def test_a_failing_forward_is_a_clear_error_and_changes_nothing(kwargs):
    model = busy(fail=True)
    before = snapshot(model)
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    inputs = {"x": torch.ones(3, 4)} if kwargs else (torch.ones(3, 4),)
    with pytest.raises(TracingError, match=r"Busy failed .*ValueError: no such luck") as caught:
        trace(model, inputs)
    assert isinstance(caught.value, (PaletteError, RuntimeError))
    assert isinstance(caught.value.__cause__, ValueError)
    assert_unchanged(model, before)
    assert states == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )
    assert torch.is_grad_enabled()
    assert torch.compiler.is_compiling() is False


def test_wrong_inputs_are_named():
    with pytest.raises(TracingError, match="Linear failed on example_inputs: TypeError"):
        trace(nn.Linear(4, 4), (torch.ones(1, 4), torch.ones(1, 4)))
    with pytest.raises(TracingError, match="Linear failed on example_inputs: RuntimeError"):
        trace(nn.Linear(4, 4), (torch.ones(1, 5),))


def test_an_interrupt_passes_through_and_changes_nothing():
    class Interrupted(Busy):
        def forward(self, x):
            super().forward(x)
            raise KeyboardInterrupt

    model = Interrupted()
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        trace(model, (torch.ones(3, 4),))
    assert_unchanged(model, before)


def test_unusual_buffers():
    model = nn.Sequential(nn.Linear(4, 4))
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("meta", torch.zeros(2, device="meta"))
    model.register_buffer("expanded", torch.zeros(1).expand(5))
    model.register_buffer("nan", torch.full((2,), float("nan")))
    model.register_buffer("fp8", torch.ones(2).to(torch.float8_e4m3fn))
    with torch.inference_mode():
        model.register_buffer("inference", torch.ones(2))
    kept = dict(model.named_buffers())
    trace(model, (torch.randn(1, 4),))
    assert {n: id(b) for n, b in model.named_buffers()} == {n: id(b) for n, b in kept.items()}
    assert torch.equal(model.inference, torch.ones(2))


def test_inference_buffers_are_restored():
    class Counting(nn.Module):
        def forward(self, x):
            with torch.inference_mode():
                self.count.add_(1)
            return x

    model = Counting()
    with torch.inference_mode():
        model.register_buffer("count", torch.zeros(2))
    trace(model, (torch.randn(1),))
    assert model.count.tolist() == [0, 0]


def test_training_flags_are_set_without_calling_train_or_eval():
    class Merging(nn.Linear):
        """As in low-rank adapters: leaving training mode changes the weight."""

        def train(self, mode=True):
            with torch.no_grad():
                self.weight += 1
            return super().train(mode)

    class Refusing(nn.Linear):
        def eval(self):
            raise NotImplementedError

    model = nn.Sequential(Merging(4, 4), Refusing(4, 4))
    before = snapshot(model)
    trace(model, (torch.randn(1, 4),))
    assert_unchanged(model, before)


def test_the_run_is_in_evaluation_mode_without_gradients():
    seen = []

    class Watching(nn.Module):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled()))
            return x

    trace(Watching().train(), (torch.ones(1),))
    assert seen == [(False, False)]


def test_tracing_twice_gives_the_same():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    inputs = (torch.randn(3, 4),)
    assert trace(model, inputs) == trace(model, inputs) == trace(copy.deepcopy(model), inputs)


def test_user_hooks_stay_and_run():
    calls = []
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda *_: calls.append("after"))
    model[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    trace(model, (torch.randn(1, 4),))
    assert calls == ["before", "after"]
    assert len(model[0]._forward_hooks) == len(model[0]._forward_pre_hooks) == 1


def test_hooks_that_forward_installs_once_go_with_their_flag():
    """transformers installs hooks when hidden states are first asked for, and notes it."""

    class Capturing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.seen: list[torch.Tensor] = []

        def forward(self, x):
            if not getattr(self, "_installed", False):
                self.layer.register_forward_hook(lambda *args: self.seen.append(args[-1]))
                self._installed = True
            self.seen.clear()
            self.layer(x)
            (seen,) = self.seen
            return seen

    model = Capturing()
    before = snapshot(model)
    trace(model, (torch.ones(2, 4),))
    assert_unchanged(model, before)
    model(torch.ones(2, 4))
    model(torch.ones(2, 4))


def test_kinds_of_inputs():
    x = torch.ones(1)
    assert call_arguments(x) == call_arguments((x,)) == ((x,), {})
    assert call_arguments([x, None]) == ((x, None), {})
    assert call_arguments({"x": x}) == ((), {"x": x})
    assert call_arguments(OrderedDict(x=x)) == ((), {"x": x})
    for wrong in (None, "x", 3, {x}, UserDict):
        with pytest.raises(TypeError, match=f"tuple of positional.*got {type(wrong).__name__}"):
            call_arguments(wrong)


def test_each_kind_of_input_runs():
    model = nn.Linear(4, 4)
    x = torch.randn(1, 4)
    graphs = [trace(model, inputs) for inputs in (x, (x,), [x], {"input": x}, UserDict(input=x))]
    assert all(graph == graphs[0] for graph in graphs)
    with pytest.raises(TypeError, match="got a mapping with the key 0"):
        trace(model, {0: x})


class Offloaded(nn.Module):
    """A model whose second layer is on the meta device but for the time of its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        layer, there = self.second, {n: p.detach() for n, p in self.second.named_parameters()}
        layer.to("meta")
        forward = layer.forward

        def fetched(x):
            for name, value in there.items():
                layer._parameters[name] = nn.Parameter(value)
            try:
                return forward(x)
            finally:
                layer.to("meta")

        layer.forward = fetched

    def forward(self, x):
        return self.second(self.first(x))


def test_offloaded_models_are_refused_by_name() -> None:
    model = Offloaded()
    assert model(torch.ones(1, 4)).shape == (1, 4)
    with pytest.raises(TracingError, match=r"second\.weight and 1 more are on the meta device"):
        trace(model, torch.ones(1, 4))
    with pytest.raises(TracingError, match=r"second\.weight"):
        KMeansPalettizer(model).calibrate([torch.ones(1, 4)])


def test_a_model_without_values_can_be_looked_at() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to("meta")
    graph = trace(model, torch.ones(1, 4, device="meta"))
    assert [tensor.uses[0].op_type for tensor in graph.tensors] == ["linear"] * 4
