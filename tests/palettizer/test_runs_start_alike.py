"""Every run of a model starts from the same inputs, buffers, attributes and random states."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from palette_core import KMeansPalettizer, KMeansPalettizerConfig, allocate
from palette_core.errors import CalibrationError
from palette_core.model import trace
from palette_core.model.hooked_weights import replace_hook


def config(algorithm: str = "lnq") -> KMeansPalettizerConfig:
    spec = {"n_bits": 2, "algorithm": algorithm}
    return KMeansPalettizerConfig.from_dict(
        {"kmeans_palettization_config": {"global_config": {"op_state_spec": {"weight": spec}}}}
    )


class Stack(nn.Module):
    """Two residual blocks; what a subclass does to its input, or to itself, comes first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def first(self, x: Tensor) -> Tensor:
        return (x - 3.0) / 2.0

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return x


class InPlace(Stack):
    def first(self, x):
        return x.sub_(3.0).div_(2.0)


class ThroughData(Stack):
    def first(self, x):
        x.data.copy_((x - 3.0) / 2.0)
        return x


class Counting(Stack):
    """Writes to a cache at a position, in buffers, as decoders do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cache", torch.zeros(64, 16))
        self.register_buffer("at", torch.zeros((), dtype=torch.long))

    def first(self, x):
        at = int(self.at)
        assert at == 0
        self.cache[at : at + len(x)] = (x - 3.0) / 2.0
        self.at += len(x)
        return self.cache[: at + len(x)] + 0.0


class CountingByItself(Stack):
    """The same in plain attributes, one of which is made in the first call."""

    def __init__(self):
        super().__init__()
        self.cache, self.at, self.seen = torch.zeros(64, 16), 0, []

    def first(self, x):
        assert self.at == 0
        assert not self.seen
        assert not hasattr(self, "made")
        self.cache[self.at : self.at + len(x)] = (x - 3.0) / 2.0
        self.at += len(x)
        self.seen.append(x)
        self.made = x
        return self.cache[: self.at] + 0.0


class Attending(Stack):
    """Attends to a cache of keys in a buffer, which gradients need as it was in the run."""

    def __init__(self):
        super().__init__()
        self.register_buffer("keys", torch.zeros(64, 16))
        self.register_buffer("at", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        at = int(self.at)
        assert at == 0
        x = self.blocks[0]((x - 3.0) / 2.0)
        self.keys[: len(x)] = self.blocks[1](x)
        self.at += len(x)
        return x @ self.keys[: len(x)].T


class AttendingAfresh(Attending):
    def forward(self, x):
        x = self.blocks[0]((x - 3.0) / 2.0)
        return x @ self.blocks[1](x).T


def batches() -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 16, generator=generator) * 2 + 3,) for _ in range(3)]


def calibrated(model: nn.Module, **options) -> tuple[dict[str, Tensor], list]:
    given, palettizer = batches(), KMeansPalettizer(model.eval(), config())
    palettizer.calibrate(given, **options)
    palettizer.prepare(given[0], show_progress=False)
    weights = {f"{i}": block.weight.detach() for i, block in enumerate(model.blocks)}
    assert all(torch.equal(x, y) for (x,), (y,) in zip(given, batches(), strict=True))
    return weights, palettizer.report.tensors


OPTIONS = {
    "at once": {},
    "sequential": {"sequential": True},
    "loss": {"loss": lambda output, batch: (output - batch[0]).square().sum()},
    "held out": {"held_out": [(torch.ones(4, 16),)], "sequential": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", [InPlace, ThroughData, Counting, CountingByItself])
def test_what_a_run_does_to_its_inputs_and_to_the_model_is_undone(kind, options):
    truth, _ = calibrated(Stack(), **options)
    model = kind()
    buffers = {name: (id(b), b.clone()) for name, b in model.named_buffers()}
    found, _ = calibrated(model, **options)
    assert all(torch.equal(found[name], weight) for name, weight in truth.items())
    for name, buffer in model.named_buffers():
        if name in buffers:
            assert id(buffer) == buffers[name][0]
            assert torch.equal(buffer, buffers[name][1])
    if kind is CountingByItself:
        assert (model.at, model.seen, hasattr(model, "made")) == (0, [], False)
        assert not model.cache.any()


@pytest.mark.parametrize("metric", ["hessian", "output"])
@pytest.mark.parametrize("kind", [InPlace, Counting, CountingByItself])
def test_allocation_sees_the_same_inputs_in_every_run(kind, metric):
    def predicted(model: nn.Module) -> float:
        given = batches()
        options = {"target_bpw": 3, "candidates": (2, 4), "metric": metric, "batches": given}
        return allocate(model.eval(), KMeansPalettizerConfig(), given[0], **options).predicted_loss

    assert predicted(kind()) == predicted(Stack())


class Memory:
    """What models get for a cache: an object that grows, with tensors somewhere inside."""

    def __init__(self, *layers: Tensor) -> None:
        self.layers = list(layers)


@dataclasses.dataclass
class Both:
    x: Tensor
    memory: Memory


class Decoder(Stack):
    def forward(self, both=None, *, x=None, memory=None):
        x, memory = (x, memory) if both is None else (both.x, both.memory)
        assert len(memory.layers) == 1
        memory.layers.append(x.sub_(3.0).div_(2.0))
        memory.layers[0].add_(1.0)
        return super().forward(x + memory.layers[0].mean() + 3.0)


def decoder_batches(kind: str) -> list:
    made = [(x, Memory(torch.zeros(2, 2))) for (x,) in batches()]
    if kind == "dataclass":
        return [(Both(*each),) for each in made]
    return [{"x": x, "memory": memory} for x, memory in made]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("kind", ["dataclass", "keywords"])
def test_objects_among_the_inputs_are_the_same_in_every_run(kind, sequential):
    given = decoder_batches(kind)
    model = Decoder().eval()
    palettizer = KMeansPalettizer(model, config())
    palettizer.calibrate(given, sequential=sequential)
    palettizer.prepare(given[0], show_progress=False)
    for batch, (x,) in zip(given, batches(), strict=True):
        both = batch[0] if kind == "dataclass" else Both(**batch)
        assert torch.equal(both.x, x)
        [layer] = both.memory.layers
        assert not layer.any()


def test_random_numbers_of_a_run_are_those_of_every_other():
    class Sampling(Stack):
        def first(self, x):
            return x + torch.rand(())

    options = {"target_bpw": 3, "candidates": (2, 8), "metric": "output", "batches": batches()}
    found = allocate(Sampling().eval(), KMeansPalettizerConfig(), batches()[0], **options)
    # At 8 bits outputs hardly move; noise of their own would move them as much as 2 bits do.
    for tensor in found.tensors:
        low, high = (c.loss for c in tensor.candidates)
        assert high < 1e-3 * low


def test_what_cannot_be_copied_is_named_with_its_batch():
    class Reading(Stack):
        def forward(self, x, more):
            return super().forward(x + next(more))

    given = [(torch.ones(2, 16), (x for x in (1.0, 2.0)))]
    palettizer = KMeansPalettizer(Reading(), config())
    with pytest.raises(CalibrationError, match=r"batch 0 .*generator.* cannot be copied"):
        palettizer.calibrate(given)


def test_tracing_leaves_inputs_and_attributes_alone():
    model, x = CountingByItself(), batches()[0][0]
    for _ in range(2):
        trace(model, (x,))
    assert model.at == 0
    inputs = x.clone()
    trace(InPlace(), (inputs,))
    trace(InPlace(), {"x": inputs})
    assert torch.equal(inputs, x)


def test_a_module_that_builds_itself_in_a_run_stays_built():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.width = None, 0

        def forward(self, x):
            if self.inner is None:
                self.inner, self.width = nn.Linear(x.shape[-1], 4), x.shape[-1]
            return self.inner(x[:, : self.width])

    model = Late()
    graph = trace(model, (torch.ones(1, 16),))
    assert "inner.weight" in [tensor.name for tensor in graph.tensors]
    assert model.width == 16


def hooked(kind: str) -> Stack:
    """Return a stack whose weights are computed: in hooks, or by parametrizations that do alike."""
    model = Stack()
    for block in model.blocks:
        match kind:
            case "old norm":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)
                    torch.nn.utils.weight_norm(block)
            case "new norm":
                torch.nn.utils.parametrizations.weight_norm(block)
            case "pruned":
                prune.l1_unstructured(block, "weight", amount=0.3)
            case "masked":
                prune.l1_unstructured(block, "weight", amount=0.3)
                replace_hook(block, "weight")
    return model.eval()


@pytest.mark.filterwarnings("ignore:pruned weights lose zeros")
@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(("kind", "alike"), [("old norm", "new norm"), ("pruned", "masked")])
def test_weights_that_hooks_compute_are_watched(kind, alike, sequential):
    truth, _ = calibrated(hooked(alike), sequential=sequential)
    found, tensors = calibrated(hooked(kind), sequential=sequential)
    assert [tensor.algorithm for tensor in tensors] == ["lnq", "lnq"]
    for name, weight in truth.items():
        torch.testing.assert_close(found[name], weight)


@pytest.mark.parametrize(("kind", "alike"), [("old norm", "new norm"), ("pruned", "masked")])
def test_allocation_exchanges_weights_that_hooks_compute(kind, alike):
    def predicted(model: nn.Module) -> float:
        given = batches()
        options = {"target_bpw": 3, "candidates": (2, 4), "metric": "output", "batches": given}
        return allocate(model, KMeansPalettizerConfig(), given[0], **options).predicted_loss

    model = hooked(kind)
    hooks = [dict(block._forward_pre_hooks) for block in model.blocks]
    loss = predicted(model)
    assert loss > 0
    assert loss == pytest.approx(predicted(hooked(alike)))
    assert [dict(block._forward_pre_hooks) for block in model.blocks] == hooks


@pytest.mark.filterwarnings("ignore:pruned weights lose zeros")
def test_what_a_hook_computes_is_of_the_parameters_as_they_are():
    model = hooked("pruned")
    with torch.no_grad():
        model.blocks[0].weight_orig.mul_(3.0)  # as an optimizer does; the attribute is of before
    found, _ = calibrated(model)
    fresh = hooked("pruned")
    with torch.no_grad():
        fresh.blocks[0].weight_orig.mul_(3.0)
        fresh(batches()[0][0])
    truth, _ = calibrated(fresh)
    assert all(torch.equal(found[name], weight) for name, weight in truth.items())


def test_gradients_of_a_loss_go_through_what_a_run_leaves_in_buffers():
    how = {"loss": lambda output, batch: output.square().sum() + batch[0].sum()}
    truth, _ = calibrated(AttendingAfresh(), **how)
    model = Attending()
    found, _ = calibrated(model, **how)
    assert all(torch.equal(found[name], weight) for name, weight in truth.items())
    assert not model.keys.any()
    assert model.keys.is_leaf


def test_steps_of_calibration_start_from_the_same_buffers():
    def measured(model: nn.Module) -> dict[str, Tensor]:
        palettizer = KMeansPalettizer(model.eval(), None)
        palettizer.prepare(batches()[0], show_progress=False)
        with palettizer.calibration_mode(loss_fn=nn.functional.mse_loss) as calibration:
            for (x,) in batches():
                calibration.step(model(x), torch.zeros(8, 8))
        return {name: value.clone() for name, value in model.state_dict().items()}

    model = Attending()
    found, truth = measured(model), measured(AttendingAfresh())
    assert all(torch.equal(found[name], value) for name, value in truth.items())
    assert (int(model.at), model.keys.is_leaf, bool(model.keys.any())) == (0, True, False)
