"""State machine: which call is allowed in which state of a model, in one table."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from enum import Enum
from weakref import WeakKeyDictionary

from torch import nn

from palette_core._common.undoing import undone
from palette_core.errors import StateError
from palette_core.palettizer.palettized_weight import PalettizedWeight
from palette_core.storage.sites import palette_sites


class State(Enum):
    """State of a model between its first and its last call."""

    UNPREPARED = "unprepared"
    PREPARED = "prepared"
    CALIBRATING = "calibrating"
    TRAINING = "training"
    FINALIZED = "finalized"


class Action(Enum):
    """Action that a palettizer is asked for."""

    LOOK = "calibrate()"
    PREPARE = "prepare()"
    CALIBRATE = "calibration_mode()"
    TRAIN = "training_mode()"
    STEP = "step()"
    SAVE = "save_sensitivities()"
    MEASURE = "measure()"
    FINALIZE = "finalize()"
    FOLD = "dequantize()"
    EXPORT = "export()"


def _busy(call: str) -> dict[State, State | str]:
    return {
        state: f"Cannot {call} while palettizer is {state.value}"
        for state in (State.CALIBRATING, State.TRAINING)
    }


def _needs_prepared(before: str, then: State) -> dict[State, State | str]:
    needed = f"Model must be prepared before {before}"
    return {
        State.UNPREPARED: needed,
        State.PREPARED: then,
        State.FINALIZED: f"{needed}; this one is finalized, and its dense weights are gone",
    }


_ONCE = "Model has already been prepared. Cannot re-prepare"
_OUTSIDE = "step() must be called inside a training_mode()"

TRANSITIONS: Mapping[Action, Mapping[State, State | str]] = {
    # The next state, or why not. Leaving a mode leads back to PREPARED.
    Action.LOOK: _busy("calibrate()")
    | {
        State.UNPREPARED: State.UNPREPARED,
        State.PREPARED: "Model has already been prepared. Calibrate before prepare()",
        State.FINALIZED: "Model has already been finalized. Calibrate before prepare()",
    },
    Action.PREPARE: dict.fromkeys(State, _ONCE)
    | {State.UNPREPARED: State.PREPARED, State.FINALIZED: f"{_ONCE}: it is finalized"},
    Action.CALIBRATE: _busy("enter calibration_mode()")
    | _needs_prepared("entering calibration mode", State.CALIBRATING),
    Action.TRAIN: _busy("enter training_mode()")
    | _needs_prepared("entering training mode", State.TRAINING),
    Action.STEP: dict.fromkeys(State, _OUTSIDE)
    | {
        State.TRAINING: State.TRAINING,
        State.CALIBRATING: f"{_OUTSIDE}; calibration_mode() yields an object of its own with "
        "step(output, target)",
    },
    Action.SAVE: _busy("save_sensitivities()")
    | _needs_prepared("saving sensitivities", State.PREPARED)
    | {State.TRAINING: State.TRAINING},
    Action.MEASURE: _busy("measure()") | _needs_prepared("measure()", State.PREPARED),
    Action.FINALIZE: _busy("finalize()") | _needs_prepared("finalization", State.FINALIZED),
    Action.FOLD: _busy("dequantize()")
    | _needs_prepared("dequantize()", State.UNPREPARED)
    | {State.FINALIZED: State.UNPREPARED},
    Action.EXPORT: _busy("export()")
    | _needs_prepared("export", State.FINALIZED)
    | {State.FINALIZED: State.FINALIZED},
}


def check(
    action: Action, model: nn.Module, doing: State | None = None, *, marks: bool = True
) -> State:
    """Return the state of a model, from which an action is allowed.

    Args:
        action: what is asked for.
        model: any.
        doing: what the palettizer is in the middle of, which counts before the model's state.
        marks: as for `state_of`.

    Raises:
        StateError: the table has no next state.
    """
    state = doing or state_of(model, marks=marks)
    found = TRANSITIONS[action][state]
    if isinstance(found, str):
        raise StateError(found)
    return state


# --- the state of a model -----------------------------------------------------------------------

_MARK = "_palette_core_state"
_BUSY: WeakKeyDictionary[PalettizedWeight, State] = WeakKeyDictionary()


def state_of(model: nn.Module, *, marks: bool = True) -> State:
    """Return the state of a model, whoever has brought it there.

    Args:
        model: any.
        marks: believe `mark` where no palette shows the state.
    """
    prepared = palette_sites(model, PalettizedWeight)
    for site in prepared:
        if site.palette in _BUSY:
            return _BUSY[site.palette]
    if prepared:
        return State.PREPARED
    if palette_sites(model):
        return State.FINALIZED
    marked: State = vars(model).get(_MARK, State.UNPREPARED)
    return marked if marks else State.UNPREPARED


def mark(model: nn.Module, state: State) -> None:
    """Note the state of a model in which no palette can show it.

    Such are models none of whose weights was to be palettized, and models that a backend has
    given a form of its own. Copies carry the mark along.
    """
    if not palette_sites(model):
        vars(model)[_MARK] = state


@contextlib.contextmanager
def occupied(model: nn.Module, state: State) -> Iterator[None]:
    """Hold a prepared model in ``state`` while the block runs. Copies of it are free."""
    items = [site.palette for site in palette_sites(model, PalettizedWeight)]
    with undone(list(items), lambda item: _BUSY.pop(item, None)):
        for item in items:
            _BUSY[item] = state
        yield
