"""Whatever ends a calibration, the model is as it was; and others collect nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from palettizer_models import (
    EVERYTHING_INPUTS,
    Everything,
    decoded_weights,
    everything_config,
    snapshot,
)
from torch import Tensor, nn

from palette_core import KMeansPalettizer
from palette_core.engine import executor as execution
from palette_core.errors import ClusteringError
from palette_core.palettizer import calibration as mode
from palette_core.palettizer.calibration_session import Calibration
from palette_core.palettizer.gauge import Gauge
from palette_core.palettizer.palettized_weight import PalettizedWeight
from palette_core.statistics.gradients.squares import SquareSum

FAILURES = [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(3), MemoryError()]
failures = pytest.mark.parametrize("failure", FAILURES, ids=lambda f: type(f).__name__)


class Counting(Everything):
    """In training mode it also counts its calls, in a buffer that it replaces each time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))
        self.spare = nn.Parameter(torch.ones(1 << 17))  # too large to keep its flag

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return super().forward(x) * self.spare.mean()


def prepared() -> tuple[KMeansPalettizer, nn.Module]:
    """A model with mixed modes and flags, gradients of its own, and hooks."""
    palettizer = KMeansPalettizer(Counting().train(), everything_config())
    model = palettizer.prepare(EVERYTHING_INPUTS)
    model.norm.eval()
    model.head.bias.requires_grad_(False)
    model.conv.parametrizations.weight.original.requires_grad_(False)
    for number, parameter in enumerate(model.parameters()):
        if number % 2:
            parameter.grad = torch.full_like(parameter, float(number))
    model.conv.register_forward_hook(lambda *_: None)
    return palettizer, model


def state(model: nn.Module) -> dict[str, Any]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kept = snapshot(model)
    del kept["values"]
    return {
        **kept,
        "values": {name: t.detach().clone() for name, t in tensors.items()},
        "gradients": {
            n: None if p.grad is None else (id(p.grad), p.grad.clone())
            for n, p in model.named_parameters()
        },
        "tensor hooks": {
            n: [bool(p._backward_hooks), bool(p._post_accumulate_grad_hooks)]
            for n, p in model.named_parameters()
        },
        "rnn": [(m.dropout, m.training) for m in model.modules() if isinstance(m, nn.RNNBase)],
        "enabled": [m.is_enabled for m in model.modules() if isinstance(m, PalettizedWeight)],
        "measured": [id(m.sensitivity) for m in model.modules() if isinstance(m, PalettizedWeight)],
    }


PALETTES = ("indices", "lut")


def assert_same(model: nn.Module, before: dict[str, Any], *, palettes: bool = True) -> None:
    after, before = state(model), dict(before)
    values, expected = after.pop("values"), before.pop("values")
    gradients, own = after.pop("gradients"), before.pop("gradients")
    if not palettes:
        for part in ("buffers", "measured", "flat"):
            del after[part], before[part]
    assert after == before
    for name, value in expected.items():
        if palettes or not name.endswith(PALETTES):
            assert torch.equal(values[name], value), name
    for name, gradient in own.items():
        if gradient is None:
            assert gradients[name] is None
        else:
            assert gradients[name][0] == gradient[0]
            assert torch.equal(gradients[name][1], gradient[1])


def calibrate(palettizer: KMeansPalettizer, model: nn.Module, **options: Any) -> None:
    with palettizer.calibration_mode(loss_fn=lambda o, t: (o - t).square().sum(), **options) as c:
        for factor in (0.5, 1.0):
            c.step(model(EVERYTHING_INPUTS[0] * factor), factor)


def attempt(failure: BaseException, act: Callable[[KMeansPalettizer, nn.Module], None]) -> None:
    palettizer, model = prepared()
    before, weights = state(model), decoded_weights(model)
    with pytest.raises((type(failure), ClusteringError)):
        act(palettizer, model)
    assert_same(model, before)
    assert all(torch.equal(weights[n], w) for n, w in decoded_weights(model).items())


def test_a_good_calibration_changes_palettes_only() -> None:
    palettizer, model = prepared()
    before, weights = state(model), decoded_weights(model)
    calibrate(palettizer, model)
    assert_same(model, before, palettes=False)
    assert any(not torch.equal(weights[n], w) for n, w in decoded_weights(model).items())


def test_inside_the_weights_are_dense_and_the_modes_the_users() -> None:
    palettizer, model = prepared()
    dense = Counting().train()
    with palettizer.calibration_mode(loss_fn=lambda o, _: o.sum()) as calibration:
        assert model.training
        assert not model.norm.training
        torch.testing.assert_close(model(*EVERYTHING_INPUTS), dense(*EVERYTHING_INPUTS))
        model.eval()
        assert not model.lstm.training
        calibration.step(model(*EVERYTHING_INPUTS), None)
    assert model.training


def test_others_collect_no_gradients() -> None:
    palettizer, model = prepared()
    own = {n: p.grad for n, p in model.named_parameters()}
    originals = {n for n in own if n.endswith("original")}
    with palettizer.calibration_mode(loss_fn=lambda o, _: o.sum()) as calibration:
        for _ in range(2):
            calibration.step(model(*EVERYTHING_INPUTS), None)
            for name, parameter in model.named_parameters():
                assert parameter.grad is (own[name] if name in originals else parameter.grad)
                assert parameter.grad is None or parameter.grad is own[name]
        assert not model.spare.requires_grad


def test_one_gradient_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a gradient is squared, it is the only one there is."""
    gauges: list[Gauge] = []
    alive: list[int] = []
    init, add = Gauge.__init__, SquareSum.add

    def remembered(self: Gauge, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        gauges.append(self)

    def counted(self: SquareSum, gradient: Tensor) -> bool:
        aliases = [gauge._alias for gauge in gauges if gauge._alias is not None]
        held = [a for a in aliases if a.grad is not None] + [
            g for g in gauges if g._sum is not None
        ]
        alive.append(1 + len(held))
        return add(self, gradient)

    monkeypatch.setattr(Gauge, "__init__", remembered)
    monkeypatch.setattr(SquareSum, "add", counted)
    palettizer, model = prepared()
    calibrate(palettizer, model)
    assert len(gauges) == 10
    assert alive == [1] * 20
    assert all(gauge._alias is None and gauge._source is None for gauge in gauges)


# --- what can go wrong --------------------------------------------------------------------------


@failures
def test_the_block_fails(failure: BaseException) -> None:
    def act(palettizer: KMeansPalettizer, model: nn.Module) -> None:
        with palettizer.calibration_mode(loss_fn=lambda o, _: o.sum()) as calibration:
            calibration.step(model(*EVERYTHING_INPUTS), None)
            model.eval()
            model.head.requires_grad_(True)
            model.zero_grad(set_to_none=True)
            raise failure

    attempt(failure, act)


@failures
def test_the_loss_fails(failure: BaseException) -> None:
    def broken(output: Tensor, target: object) -> Tensor:
        raise failure

    def act(palettizer: KMeansPalettizer, model: nn.Module) -> None:
        with palettizer.calibration_mode(loss_fn=broken) as calibration:
            calibration.step(model(*EVERYTHING_INPUTS), None)

    attempt(failure, act)


class Stop:
    """Calls through, and raises at the n-th call, before or after it."""

    def __init__(self, call: Any, number: int, failure: BaseException, after: bool) -> None:
        self.call, self.left, self.failure, self.after = call, number, failure, after

    def method(self) -> Callable[..., Any]:
        def through(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self.after:
                raise self.failure
            result = self.call(*args, **kwargs)
            if self.left == 0:
                raise self.failure
            return result

        return through


@pytest.mark.slow
@pytest.mark.parametrize("failure", FAILURES[:2], ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [
        (SquareSum, "add", 1),  # in the backward pass
        (SquareSum, "add", 13),
        (Calibration, "step", 2),
        (SquareSum, "take", 4),
        (mode, "fingerprint", 10),
        (execution.Executor, "run", 1),
        (execution, "cluster_here", 3),
        (PalettizedWeight, "set_palettized", 1),
        (PalettizedWeight, "set_palettized", 7),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_stopped_at_every_stage(
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    after: bool,
    owner: Any,
    name: str,
    number: int,
) -> None:
    def act(palettizer: KMeansPalettizer, model: nn.Module) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, Stop(getattr(owner, name), number, failure, after).method())
            calibrate(palettizer, model)

    attempt(failure, act)


def test_afterwards_all_works(monkeypatch: pytest.MonkeyPatch) -> None:
    palettizer, model = prepared()
    with monkeypatch.context() as patch:
        stop = Stop(SquareSum.add, 3, KeyboardInterrupt(), False)
        patch.setattr(SquareSum, "add", stop.method())
        with pytest.raises(KeyboardInterrupt):
            calibrate(palettizer, model)
    calibrate(palettizer, model)
    with palettizer.training_mode():
        palettizer.step()
    fresh, twin = prepared()
    calibrate(fresh, twin)
    weights = decoded_weights(twin)
    assert all(torch.equal(weights[n], w) for n, w in decoded_weights(model).items())


def test_a_file_that_cannot_be_written_costs_no_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    palettizer, model = prepared()
    weights = decoded_weights(model)
    path = tmp_path / "folder" / "s.safetensors"
    path.parent.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(mode, "save_sensitivities", full)
        with pytest.raises(OSError, match="No space left"):
            calibrate(palettizer, model, sensitivity_path=path)
    assert any(not torch.equal(weights[n], w) for n, w in decoded_weights(model).items())
    palettizer.save_sensitivities(path)
    again = Counting().train()
    KMeansPalettizer(again, everything_config()).prepare(EVERYTHING_INPUTS, path)
    weights = decoded_weights(again)
    assert all(torch.equal(weights[n], w) for n, w in decoded_weights(model).items())


def test_a_path_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    palettizer, model = prepared()
    before = state(model)
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "s.safetensors"):
        with (
            pytest.raises(OSError, match=r"is a folder|exists|Not a directory"),
            palettizer.calibration_mode(loss_fn=lambda o, _: o.sum(), sensitivity_path=path),
        ):
            raise AssertionError("entered")
    assert_same(model, before)


def test_ctrl_c_while_saving_leaves_the_model_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from palette_core.storage import sensitivity_files

    def act(palettizer: KMeansPalettizer, model: nn.Module) -> None:
        with monkeypatch.context() as patch:
            stop = Stop(sensitivity_files.save_file, 1, KeyboardInterrupt(), True)
            patch.setattr(sensitivity_files, "save_file", stop.method())
            calibrate(palettizer, model, sensitivity_path=tmp_path / "s.safetensors")

    attempt(KeyboardInterrupt(), act)
    assert not list(tmp_path.iterdir())


def test_a_copy_made_inside_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    import copy

    palettizer, model = prepared()
    with palettizer.calibration_mode(loss_fn=lambda o, _: o.sum()) as calibration:
        twin = copy.deepcopy(model)
        calibration.step(model(*EVERYTHING_INPUTS), None)
        twin(*EVERYTHING_INPUTS).sum().backward()  # its gradients are its own
    KMeansPalettizer(twin).finalize(twin, backend="packed")


def test_calibration_draws_no_global_random_numbers() -> None:
    import random

    import numpy as np

    palettizer, model = prepared()
    model.eval()
    states = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state())
    calibrate(palettizer, model)
    now = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state())
    assert states[:2] == now[:2]
    assert torch.equal(states[2], now[2])
