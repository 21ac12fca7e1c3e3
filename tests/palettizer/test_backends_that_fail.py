"""Backends that fail at any step, having changed the model in any way: it is as before."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from palettizer_models import EVERYTHING_INPUTS, Everything, everything_config
from torch import Tensor, nn
from torch.nn.utils import parametrize
from wrong_runtimes import Exports, backend

from palette_core import KMeansPalettizer, PATSchedule
from palette_core.errors import BackendError
from palette_core.palettizer.life_cycle import State, state_of
from palette_core.storage.sites import palette_sites

Change = Callable[[nn.Module], object]


def state(model: nn.Module) -> list[Any]:
    return [
        state_of(model),
        {n: t.clone() for n, t in model.state_dict().items()},
        [(n, id(p), p.requires_grad, p.dtype, p.data_ptr()) for n, p in model.named_parameters()],
        [(n, id(b), b.dtype) for n, b in model.named_buffers()],
        [(n, id(m), type(m), m.training) for n, m in model.named_modules()],
        [
            {n: len(v) for n, v in vars(m).items() if n.endswith("hooks") and v is not None}
            for m in model.modules()
        ],
        [sorted(vars(m)) for m in model.modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
    ]


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(found, Tensor):
        assert torch.equal(found, expected)
    elif isinstance(found, dict):
        assert list(found) == list(expected)
        assert_same(list(found.values()), list(expected.values()))
    elif isinstance(found, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def writes(model: nn.Module) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.numel():
            tensor.data.fill_(1)


def replaces(model: nn.Module) -> None:
    for name, _ in list(model.named_children()):
        setattr(model, name, nn.Identity())


def folds(model: nn.Module) -> None:
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name, leave_parametrized=False)
            return


CHANGES: dict[str, Change] = {
    "nothing": lambda model: None,
    "half": lambda model: model.half(),
    "mode": lambda model: model.train(not model.training),
    "frozen": lambda model: model.requires_grad_(False),
    "hooks": lambda model: [m.register_forward_hook(print) for m in model.modules()],
    "buffer": lambda model: model.register_buffer("more", torch.zeros(1)),
    "gradients": lambda model: model.zero_grad(),
    "replaced": replaces,
    "folded": folds,
    "written": writes,
}


def interrupt(*given: object) -> None:
    signal.raise_signal(signal.SIGINT)


def fail(*given: object) -> None:
    raise LookupError("no licence")


def midway(stop: Callable[..., None], change: Change) -> Callable[[nn.Module], object]:
    """Change a model, half of its packed weights replaced by nothing, and stop."""

    def finalize(model: nn.Module) -> object:
        sites = palette_sites(model)
        for site in sites[: len(sites) // 2]:
            del site.module.parametrizations
        change(model)
        stop()
        return model

    return finalize


def changed(stop: Callable[..., None], change: Change) -> Callable[[nn.Module], object]:
    def finalize(model: nn.Module) -> object:
        change(model)
        stop()
        return model

    return finalize


def prepared() -> tuple[KMeansPalettizer, nn.Module]:
    torch.manual_seed(0)
    palettizer = KMeansPalettizer(Everything().train(), everything_config())
    model = palettizer.prepare(EVERYTHING_INPUTS)
    model(*EVERYTHING_INPUTS).square().sum().backward()
    return palettizer, model


CASES = [
    *((changed(fail, change), BackendError, name) for name, change in CHANGES.items()),
    *((changed(interrupt, CHANGES[n]), KeyboardInterrupt, n) for n in ("nothing", "half")),
    (midway(fail, CHANGES["written"]), BackendError, "midway"),
    (midway(interrupt, CHANGES["half"]), KeyboardInterrupt, "midway"),
    (lambda model: model.half() and 3, BackendError, "nonsense"),
]


@pytest.fixture(scope="module")
def undisturbed() -> list[Any]:
    palettizer, _ = prepared()
    model = palettizer.finalize(backend="packed")
    return [dict(model.state_dict()), model(*EVERYTHING_INPUTS)]


@pytest.mark.slow
@pytest.mark.parametrize("act", ["finalize", "export"])
@pytest.mark.parametrize(
    ("wrong", "error", "name"), CASES, ids=[f"{c[2]}-{c[1].__name__}" for c in CASES]
)
def test_a_prepared_model_stays(act, wrong, error, name, register, tmp_path, undisturbed) -> None:
    register(backend(finalize=wrong))
    palettizer, model = prepared()
    before = state(model)
    given = {"path": tmp_path / "m.safetensors", "example_inputs": EVERYTHING_INPUTS}
    with pytest.raises(error):
        getattr(palettizer, act)(backend="wrong", **(given if act == "export" else {}))
    assert_same(state(model), before)
    assert list(tmp_path.iterdir()) == []
    final = palettizer.finalize(backend="packed")
    assert_same([dict(final.state_dict()), final(*EVERYTHING_INPUTS)], undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [None, fail, interrupt])
@pytest.mark.parametrize("name", CHANGES)
def test_a_finalized_model_stays_whatever_export_does(
    name: str, stop: Callable[..., None] | None, register, tmp_path: Path
) -> None:
    class Harms(Exports):
        def export(self, model, example_inputs, path, dynamic_shapes=None):
            path.write_text("half")
            CHANGES[name](model)
            for given in example_inputs:
                given.fill_(1)
            if stop is not None:
                stop()
            return path

    register(replace(backend(), factory=lambda options: Harms()))
    palettizer, _ = prepared()
    model = palettizer.finalize(backend="packed")
    before, inputs = state(model), tuple(given.clone() for given in EVERYTHING_INPUTS)
    path = tmp_path / "m.safetensors"
    if stop is None:
        palettizer.export(path, inputs, backend="wrong")
    else:
        with pytest.raises((BackendError, KeyboardInterrupt)):
            palettizer.export(path, inputs, backend="wrong")
    assert path.exists() is (stop is None)
    assert_same(state(model), before)
    assert_same(inputs, EVERYTHING_INPUTS)


def test_weights_that_still_train_dense_do_so_after_a_failure(register) -> None:
    register(backend(finalize=lambda model: fail()))
    torch.manual_seed(0)
    config = everything_config()
    config.global_config.pat_schedule = PATSchedule(enable_fake_palettize=9)
    palettizer = KMeansPalettizer(Everything().train(), config)
    model = palettizer.prepare(EVERYTHING_INPUTS)
    with palettizer.training_mode():
        model(*EVERYTHING_INPUTS)
        palettizer.step()
    assert not all(site.palette.is_enabled for site in palette_sites(model))
    before = state(model)
    with pytest.raises(BackendError):
        palettizer.finalize(backend="wrong")
    assert_same(state(model), before)
    assert not all(site.palette.is_enabled for site in palette_sites(model))
    assert state_of(palettizer.finalize(backend="packed")) is State.FINALIZED


def test_a_model_that_is_offloaded_is_refused_by_the_name_of_a_weight(register, tmp_path) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    inputs = (torch.ones(1, 64),)
    register(backend())
    palettizer = KMeansPalettizer(model)
    palettizer.prepare(inputs)
    palettizer.finalize(backend="packed")[1].to("meta")
    with pytest.raises(BackendError, match=r"export 1\.weight and 1 more: on the meta device"):
        palettizer.export(tmp_path / "m.safetensors", inputs, backend="wrong")
    assert list(tmp_path.iterdir()) == []
