"""Every order of calls up to four, right and wrong, against a few rules written down here."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from palettizer_models import weight_config
from torch import nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig, save_checkpoint
from palette_core.errors import StateError
from palette_core.palettizer.life_cycle import TRANSITIONS, Action, State, state_of
from palette_core.palettizer.palettized_weight import PalettizedWeight
from palette_core.storage.sites import palette_sites

INPUTS = (torch.linspace(-1, 1, 8).reshape(2, 4),)


def layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3))


@dataclass
class World:
    """A palettizer, its model, another model, and where files go."""

    palettizer: KMeansPalettizer
    model: nn.Module
    folder: Path


def world(folder: Path) -> World:
    model = layer()
    return World(KMeansPalettizer(model, weight_config(n_bits=1)), model, folder)


Call = Callable[[World, nn.Module | None], object]


def calibrate(at: World, model: nn.Module | None) -> None:
    with at.palettizer.calibration_mode(model, loss_fn=lambda o, _: o.sum()) as calibration:
        calibration.step((model or at.model)(*INPUTS), None)


def train(at: World, model: nn.Module | None) -> None:
    with at.palettizer.training_mode(model):
        (model or at.model)(*INPUTS).sum().backward()
        at.palettizer.step()


def export(at: World, model: nn.Module | None) -> None:
    path = at.palettizer.export(at.folder / "m.safetensors", model=model, backend="packed")
    path.unlink()


CALLS: dict[str, Call] = {
    "look": lambda at, _: at.palettizer.calibrate([INPUTS]),
    "prepare": lambda at, _: at.palettizer.prepare(INPUTS),
    "calibrate": calibrate,
    "train": train,
    "step": lambda at, _: at.palettizer.step(),
    "finalize": lambda at, model: at.palettizer.finalize(model, backend="packed"),
    "export": export,
    "fold": lambda at, model: at.palettizer.dequantize(model),
}

# The rules: what a call needs, and what the model is afterwards.
NEEDS = {
    "look": {"unprepared"},
    "prepare": {"unprepared"},
    "calibrate": {"prepared"},
    "train": {"prepared"},
    "step": set(),
    "finalize": {"prepared"},
    "export": {"prepared", "finalized"},
    "fold": {"prepared", "finalized"},
}
MAKES = {"prepare": "prepared", "finalize": "finalized", "export": "finalized"}
MAKES["fold"] = "unprepared"


def kind_of(model: nn.Module) -> str:
    kinds = {type(site.palette) is PalettizedWeight for site in palette_sites(model)}
    return {(): "unprepared", (True,): "prepared", (False,): "finalized"}[tuple(kinds)]


def happens(call: Call, at: World, model: nn.Module | None = None) -> bool:
    """Whether the call works; where it does not, nothing may change."""
    target = model or at.model
    before = {n: t.clone() for n, t in target.state_dict().items()}
    modes = [m.training for m in target.modules()]
    try:
        call(at, model)
    except StateError:
        after = target.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[n], t) for n, t in before.items())
        assert [m.training for m in target.modules()] == modes
        return False
    return True


def after(history: tuple[str, ...], folder: Path) -> World:
    """A world in which these calls were made, right or wrong."""
    at = world(folder)
    for name in history:
        with suppress(StateError):
            CALLS[name](at, None)
    return at


def explore(history: tuple[str, ...], kind: str, length: int, folder: Path) -> int:
    """Try every continuation of a history; returns how many orders of calls were tried."""
    tried, at = 0, after(history, folder)
    for name, call in CALLS.items():
        right = kind in NEEDS[name]
        assert happens(call, at) is right, (*history, name)
        then = MAKES.get(name, kind) if right else kind
        assert kind_of(at.model) == then, (*history, name)
        assert at.model(*INPUTS).isfinite().all()
        tried += 1
        if length > 1:
            tried += explore((*history, name), then, length - 1, folder)
        if right:
            at = after(history, folder)
    return tried


@pytest.mark.slow
def test_every_order_up_to_four(tmp_path: Path) -> None:
    assert explore((), "unprepared", 4, tmp_path) == 8 + 8**2 + 8**3 + 8**4


def unprepared(at: World) -> nn.Module:
    return layer()


def a_copy(at: World) -> nn.Module:
    return copy.deepcopy(at.model)


def another(at: World) -> nn.Module:
    return KMeansPalettizer(layer(), weight_config(n_bits=1)).prepare(INPUTS)


def another_finalized(at: World) -> nn.Module:
    return KMeansPalettizer(layer()).finalize(another(at), backend="packed")


PATHS = [(), ("prepare",), ("prepare", "calibrate"), ("prepare", "train"), ("prepare", "finalize")]


@pytest.mark.parametrize("path", PATHS, ids="-".join)
@pytest.mark.parametrize("name", ["calibrate", "train", "finalize", "export"])
@pytest.mark.parametrize("make", [unprepared, a_copy, another, another_finalized])
def test_another_model_counts_by_its_own_state(
    path: tuple[str, ...], name: str, make: Callable[[World], nn.Module], tmp_path: Path
) -> None:
    at = world(tmp_path)
    for earlier in path:
        CALLS[earlier](at, None)
    own = {n: t.clone() for n, t in at.model.state_dict().items()}
    model = make(at)
    kind = kind_of(model)
    right = kind in NEEDS[name]
    assert happens(CALLS[name], at, model) is right
    assert kind_of(model) == (MAKES.get(name, kind) if right else kind)
    after = at.model.state_dict()
    assert list(after) == list(own)
    assert all(torch.equal(after[n], t) for n, t in own.items())


# --- inside of a mode ---------------------------------------------------------------------------


@contextmanager
def calibrating(at: World) -> Iterator[Callable[[], None]]:
    with at.palettizer.calibration_mode(loss_fn=lambda o, _: o.sum()) as calibration:
        yield lambda: calibration.step(at.model(*INPUTS), None)


@contextmanager
def training(at: World) -> Iterator[Callable[[], None]]:
    with at.palettizer.training_mode():
        yield at.palettizer.step


MODES = {"calibrating": calibrating, "training": training}
INSIDE = {
    "prepare": "Model has already been prepared. Cannot re-prepare",
    "calibrate": "Cannot enter calibration_mode() while palettizer is {}",
    "train": "Cannot enter training_mode() while palettizer is {}",
    "finalize": "Cannot finalize() while palettizer is {}",
    "export": "Cannot export() while palettizer is {}",
}


@pytest.mark.parametrize("mode", MODES)
def test_inside_of_a_mode_only_its_steps(mode: str, tmp_path: Path) -> None:
    at = world(tmp_path)
    at.palettizer.prepare(INPUTS)
    inside: Callable[[World], AbstractContextManager[Callable[[], None]]] = MODES[mode]
    for pair in itertools.product(INSIDE, repeat=2):
        with inside(at) as step:
            for name in pair:
                with pytest.raises(StateError) as caught:
                    CALLS[name](at, None)
                assert str(caught.value) == INSIDE[name].format(mode)
                step()
    assert kind_of(at.model) == "prepared"
    CALLS["export"](at, None)


def test_the_training_step_while_calibrating(tmp_path: Path) -> None:
    at = world(tmp_path)
    at.palettizer.prepare(INPUTS)
    with calibrating(at) as step:
        step()
        with pytest.raises(StateError, match=r"inside a training_mode\(\); calibration_mode\(\) y"):
            at.palettizer.step()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["calibrate", "train", "finalize", "export"])
def test_another_palettizer_on_the_same_model(mode: str, name: str, tmp_path: Path) -> None:
    at = world(tmp_path)
    at.palettizer.prepare(INPUTS)
    other = World(KMeansPalettizer(at.model), at.model, tmp_path)
    with MODES[mode](at) as step:
        step()
        with pytest.raises(StateError, match=f"while palettizer is {mode}"):
            CALLS[name](other, None)
        # A copy is nobody's.
        CALLS[name](other, copy.deepcopy(at.model))
    CALLS[name](other, None)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_ends_with_an_exception(mode: str, tmp_path: Path) -> None:
    at = world(tmp_path)
    at.palettizer.prepare(INPUTS)
    with pytest.raises(ZeroDivisionError), MODES[mode](at):
        _ = 1 / 0
    assert state_of(at.model) is State.PREPARED
    CALLS["calibrate"](at, None)


def test_saving_sensitivities(tmp_path: Path) -> None:
    at = world(tmp_path)
    path = tmp_path / "s.safetensors"
    with pytest.raises(StateError, match="Model must be prepared before saving"):
        at.palettizer.save_sensitivities(path)
    at.palettizer.prepare(INPUTS)
    with pytest.raises(ValueError, match="No sensitivities found"):
        at.palettizer.save_sensitivities(path)
    twin = copy.deepcopy(at.model)
    calibrate(at, twin)
    with pytest.raises(ValueError, match="No sensitivities found"):
        at.palettizer.save_sensitivities(path)
    at.palettizer.save_sensitivities(path, model=twin)
    assert path.exists()
    calibrate(at, None)
    with calibrating(at) as step:
        step()
        with pytest.raises(StateError, match=r"Cannot save_sensitivities\(\) while"):
            at.palettizer.save_sensitivities(path)
    with training(at):
        at.palettizer.save_sensitivities(path)
    at.palettizer.finalize(backend="packed")
    with pytest.raises(StateError, match="finalized, and its dense weights are gone"):
        at.palettizer.save_sensitivities(path)


# --- models in which no palette shows the state --------------------------------------------------


def nothing_to_do() -> KMeansPalettizerConfig:
    return KMeansPalettizerConfig(global_config=None)


@pytest.mark.filterwarnings("ignore:nothing is palettized")
def test_a_model_of_which_nothing_is_palettized() -> None:
    palettizer = KMeansPalettizer(layer(), nothing_to_do())
    with pytest.raises(StateError, match="before finalization"):
        palettizer.finalize(backend="packed")
    model = palettizer.prepare(INPUTS)
    with (
        pytest.raises(StateError, match="there is none to calibrate"),
        palettizer.calibration_mode(loss_fn=lambda o, _: o.sum()),
    ):
        pass
    assert palettizer.finalize(copy.deepcopy(model), backend="packed") is not model
    assert palettizer.finalize(backend="packed") is model
    with pytest.raises(StateError, match="this one is finalized"):
        palettizer.finalize(backend="packed")
    # A mistaken config can be mended.
    fresh = KMeansPalettizer(layer(), nothing_to_do()).prepare(INPUTS)
    KMeansPalettizer(fresh, weight_config()).prepare(INPUTS)
    assert kind_of(fresh) == "prepared"


def test_a_backend_that_leaves_no_palettes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from palette_core.builtins.backends.packed import PackedBackend

    def dense(self: PackedBackend, model: nn.Module, palettized: Any) -> nn.Module:
        nn.utils.parametrize.remove_parametrizations(model[0], "weight")
        return model

    written: list[nn.Module] = []

    def write(self: PackedBackend, model: nn.Module, inputs: Any, path: Path, shapes: Any) -> Path:
        written.append(model)
        path.touch()
        return path

    monkeypatch.setattr(PackedBackend, "finalize", dense)
    monkeypatch.setattr(PackedBackend, "export", write)
    at = world(tmp_path)
    at.palettizer.prepare(INPUTS)
    at.palettizer.finalize(backend="packed")
    assert kind_of(at.model) == "unprepared"
    for name in ("calibrate", "train", "finalize"):
        with pytest.raises(StateError, match="this one is finalized"):
            CALLS[name](at, None)
    twin = copy.deepcopy(at.model)
    for model in (None, twin):
        at.palettizer.export(tmp_path / "m.safetensors", model=model, backend="packed")
    assert written == [at.model, twin]


def test_a_loaded_checkpoint_is_a_finalized_model(tmp_path: Path) -> None:
    from palette_core import load_checkpoint

    at = world(tmp_path)
    at.palettizer.prepare(INPUTS)
    loaded = load_checkpoint(save_checkpoint(at.model, tmp_path / "c.safetensors"), layer())
    fresh = World(KMeansPalettizer(loaded), loaded, tmp_path)
    for name in ("prepare", "calibrate", "train", "step", "finalize"):
        assert not happens(CALLS[name], fresh)
    assert happens(CALLS["export"], fresh)


# --- the table ----------------------------------------------------------------------------------


def test_the_table_answers_every_question() -> None:
    for action in Action:
        assert set(TRANSITIONS[action]) == set(State)
        for answer in TRANSITIONS[action].values():
            assert isinstance(answer, State) or len(answer.split()) > 4
    # Only calls that name it lead into a mode, and only folding leads back to the beginning.
    for action, row in TRANSITIONS.items():
        assert (State.UNPREPARED in row.values()) == (action in (Action.LOOK, Action.FOLD))
        assert (State.CALIBRATING in row.values()) == (action is Action.CALIBRATE)


def test_the_documentation_shows_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "calibration.md").read_text(encoding="utf8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    head = next(row for row in rows if row[0] == "call")
    shown = {row[0].strip("`"): row[1:] for row in rows if row[0].endswith(")`")}
    assert head[1:] == [state.value for state in State]
    assert shown == {
        action.value: ["yes" if isinstance(row[state], State) else "no" for state in State]
        for action, row in TRANSITIONS.items()
    }
