"""Ctrl-C at any line inside a call: the model is as before the call, or as after it, never between.

The n-th line that runs in `palette_core` gets the signal of Ctrl-C instead, each case at another n.
"""

from __future__ import annotations

import copy
import os
import random
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from run_threads import run_threads
from torch import nn

import palette_core
from palette_core import KMeansPalettizer, KMeansPalettizerConfig, load_checkpoint, save_checkpoint
from palette_core.palettizer.life_cycle import state_of

_WATCHED = os.path.dirname(palette_core.__file__)
_INPUTS = (torch.ones(2, 8),)


@dataclass
class Outcome:
    """What became of the cases, by kind, and the cases that broke the promise."""

    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


def attack(count: int, seed: int = 0) -> Outcome:
    """Interrupt ``count`` calls."""
    made, outcome = random.Random(seed), Outcome()
    lines: dict[str, int] = {}
    for number in range(count):
        name = made.choice(sorted(CALLS))
        if name not in lines:
            begin, call = CALLS[name]
            lines[name] = _lines_of(_bound(call, begin()))
        _interrupt(name, made.randint(1, lines[name]), outcome, f"seed {seed}, case {number}")
    return outcome


def attack_the_end(name: str, count: int) -> Outcome:
    """Interrupt a call at each of its last ``count`` lines: where contexts are left."""
    outcome, (begin, call) = Outcome(), CALLS[name]
    lines = _lines_of(_bound(call, begin()))
    for at in range(lines - count + 1, lines + 1):
        _interrupt(name, at, outcome, "the end")
    return outcome


def _interrupt(name: str, at: int, outcome: Outcome, case: str) -> None:
    begin, call = CALLS[name]
    subject = begin()
    before, after, place = _state(subject.model), None, ""
    try:
        _interrupted(_bound(call, subject), at)
        kind = "finished"
    except KeyboardInterrupt as stop:
        kind = "interrupted"
        place = _place(stop)
    outcome.counts[kind] += 1
    found = _state(subject.model)
    if not _same(found, before):
        reference = begin()
        call(reference)
        after = _state(reference.model)
    problem = "" if after is None or _same(found, after) else "is neither as before nor after"
    if not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        problem = "gradients are left off"
    if run_threads():
        problem = "a thread is left"
    if problem:
        outcome.broken.append(f"{case}, {name} at line {at} ({place}): {problem}")


def _place(stop: KeyboardInterrupt) -> str:
    """Return file and line of the package that were interrupted."""
    frames = [
        f for f in traceback.extract_tb(stop.__traceback__) if f.filename.startswith(_WATCHED)
    ]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


# --- calls ----------------------------------------------------------------------------------------


@dataclass
class Subject:
    """What a call works on."""

    model: nn.Module
    palettizer: KMeansPalettizer


class Net(nn.Module):
    """Tied weights, a norm with buffers, something that stays dense."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.b = nn.Linear(8, 8, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.norm(self.a(x)))


def _dense(seed: int = 1) -> Subject:
    torch.manual_seed(seed)
    model = Net().train()
    return Subject(model, KMeansPalettizer(model, None))


def _fed() -> Subject:
    config = {"op_state_spec": {"weight": {"n_bits": 2, "algorithm": "gptq"}}}
    model = _dense().model
    palettizer = KMeansPalettizer(
        model,
        KMeansPalettizerConfig.from_dict(
            {"kmeans_palettization_config": {"global_config": config}}
        ),
    )
    palettizer.calibrate([torch.randn(9, 8) for _ in range(3)], sequential=True)
    return Subject(model, palettizer)


def _prepared(seed: int = 0) -> Subject:
    subject = _dense(seed)
    subject.palettizer.prepare(_INPUTS, show_progress=False)
    return subject


def _finalized() -> Subject:
    subject = _prepared()
    subject.palettizer.finalize(backend="packed")
    return subject


def _calibrate(subject: Subject) -> None:
    with subject.palettizer.calibration_mode(
        loss_fn=lambda output, _: output.square().sum(), show_progress=False
    ) as calibration:
        calibration.step(subject.model(_INPUTS[0]), None)


_FOLDER = Path(tempfile.mkdtemp(prefix="attack-"))
_FILE = save_checkpoint(_finalized().model, _FOLDER / "saved.safetensors")

CALLS: dict[str, tuple[Callable[[], Subject], Callable[[Subject], object]]] = {
    "load_checkpoint": (_dense, lambda s: load_checkpoint(_FILE, s.model)),
    "prepare": (_dense, lambda s: s.palettizer.prepare(_INPUTS, show_progress=False)),
    "prepare with inputs": (_fed, lambda s: s.palettizer.prepare(_INPUTS, show_progress=False)),
    "make_plan": (_dense, lambda s: s.palettizer.make_plan(_INPUTS)),
    "finalize": (_prepared, lambda s: s.palettizer.finalize(backend="packed")),
    "finalize to files": (
        _prepared,
        lambda s: s.palettizer.finalize(backend="packed", mmap_dir=_FOLDER / "files"),
    ),
    "export": (
        _prepared,
        lambda s: s.palettizer.export(_FOLDER / "out.safetensors", backend="packed"),
    ),
    "calibration_mode": (_prepared, _calibrate),
}


# --- interrupts -----------------------------------------------------------------------------------


def _bound(call: Callable[[Subject], object], subject: Subject) -> Callable[[], object]:
    return lambda: call(subject)


class _Counter:
    """Counts lines of the package, and interrupts at one of them."""

    def __init__(self, at: int) -> None:
        self.lines, self._at = 0, at

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_WATCHED):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self._at:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)  # an interrupt, and no exception of a plug-in's
        return self


def _lines_of(action: Callable[[], object]) -> int:
    counter = _Counter(-1)
    sys.settrace(counter)
    try:
        action()
    finally:
        sys.settrace(None)
    return counter.lines


def _interrupted(action: Callable[[], object], at: int) -> None:
    sys.settrace(_Counter(at))
    try:
        action()
    finally:
        sys.settrace(None)


# --- states ---------------------------------------------------------------------------------------


def _state(model: nn.Module) -> dict[str, Any]:
    return {
        "state": state_of(model),
        "tensors": {name: copy.deepcopy(t) for name, t in model.state_dict().items()},
        "classes": [type(module).__name__ for module in model.modules()],
        "training": [module.training for module in model.modules()],
        "gradients": [p.requires_grad for p in model.parameters()],
        "grads": [p.grad is None for p in model.parameters()],
        "hooks": [
            (len(module._forward_hooks), len(module._forward_pre_hooks))
            for module in model.modules()
        ],
    }


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    plain = all(one[key] == other[key] for key in one if key != "tensors")
    return (
        plain
        and list(one["tensors"]) == list(other["tensors"])
        and all(torch.equal(t, other["tensors"][name]) for name, t in one["tensors"].items())
    )
