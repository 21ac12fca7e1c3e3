"""Print the way of a model through the modules of palette_core, from `prepare` to `finalize`.

A small model is palettized for real, and every call is watched. On the way are the functions that
are handed the model, a part of it, or a record made of it: graph, plan, jobs, results, sites,
palettes. Each counts once, where it is called first; properties and special methods do not, nor
do methods that every module of torch has, which torch calls (``train``), nor the helpers of
``_common``. A plug-in is entered, and what it does inside is its own affair.

A *stay* is such a call that leads from one module (file) into another. A *climb* is one that leads
to a higher floor, by the layers of ``.importlinter``: through a callback or a late import. That
the guards in ``plugins.checked`` call plug-ins is what they are for, and no climb.

    python tools/way_through.py
"""

from __future__ import annotations

import configparser
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch import nn

import palette_core
from palette_core import KMeansPalettizer
from palette_core.engine.jobs import Job
from palette_core.engine.results import Clustered, Report
from palette_core.model.graph import ModelGraph
from palette_core.planning import Plan, TensorPlan
from palette_core.plugins import ClusterProblem
from palette_core.storage.sites import PaletteSite

ROOT = Path(palette_core.__file__).parent
ON_THE_WAY = (
    nn.Module, ModelGraph, Plan, TensorPlan, Job, ClusterProblem, Clustered, Report, PaletteSite,
    KMeansPalettizer,
)  # fmt: skip


def floors() -> dict[str, int]:
    """Return the floor of every room, the lowest first."""
    rules = configparser.ConfigParser()
    rules.read(Path(__file__).parents[1] / ".importlinter")
    lines = rules["importlinter:contract:layers"]["layers"].split("\n")
    rooms = [line.split("|") for line in reversed(lines) if line.strip()]
    return {room.strip(): floor for floor, line in enumerate(rooms) for room in line}


class Step(NamedTuple):
    """A call: how deep on the way, from where, and what."""

    depth: int
    source: str
    target: str
    function: str


@dataclass
class Walk:
    """Watches calls; a profile function."""

    floor: dict[str, int]
    seen: set[CodeType] = field(default_factory=set)
    steps: list[Step] = field(default_factory=list)

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        """Note a call."""
        del arg
        code = frame.f_code
        if event != "call" or code in self.seen or not self._is_on_the_way(frame):
            return
        self.seen.add(code)
        callers = _callers(frame)
        modules = [_module(caller) for caller in callers if caller in self.seen]
        depth = sum(a != b for a, b in itertools.pairwise(modules))
        source = _module(callers[0]) if callers else ""
        self.steps.append(Step(depth, source, _module(code), code.co_qualname))

    def _is_on_the_way(self, frame: FrameType) -> bool:
        code = frame.f_code
        if not _is_ours(code) or code.co_name.startswith(("__", "<")):
            return False
        if any(_is_plugin(_module(caller)) for caller in _callers(frame)):
            return False
        count = code.co_argcount + code.co_kwonlyargcount
        values = [frame.f_locals.get(name) for name in code.co_varnames[:count]]
        if count and (_is_property(values[0], code) or _is_of_every_module(values[0], code)):
            return False
        return any(_is_followed(value) for value in values)

    def stays(self) -> list[Step]:
        """Return the calls that lead from one module into another."""
        return [step for step in self.steps if step.source != step.target]

    def is_climb(self, step: Step) -> bool:
        """Return whether a call leads to a higher floor."""
        if not step.source or (_is_plugin(step.target) and step.source.startswith("plugins.")):
            return False
        return self._floor(step.source) < self._floor(step.target)

    def _floor(self, module: str) -> int:
        return self.floor[module.split(".", maxsplit=1)[0]]


def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(f"{ROOT}/") and not _module(code).startswith("_common.")


def _module(code: CodeType) -> str:
    return ".".join(Path(code.co_filename).relative_to(ROOT).with_suffix("").parts)


def _is_plugin(module: str) -> bool:
    return module.startswith("builtins.")


def _callers(frame: FrameType) -> list[CodeType]:
    """Return the functions of palette_core that a call comes from, the nearest first."""
    found = []
    before = frame.f_back
    while before is not None:
        if _is_ours(before.f_code):
            found.append(before.f_code)
        before = before.f_back
    return found


def _is_property(owner: Any, code: CodeType) -> bool:
    return code.co_argcount == 1 and isinstance(getattr(type(owner), code.co_name, None), property)


def _is_of_every_module(owner: Any, code: CodeType) -> bool:
    return isinstance(owner, nn.Module) and hasattr(nn.Module, code.co_name)


def _is_followed(value: Any) -> bool:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (list, tuple)):
        return any(isinstance(item, ON_THE_WAY) for item in value[:1])
    return isinstance(value, ON_THE_WAY)


def watched(call: Callable[[], Any], floor: dict[str, int]) -> Walk:
    """Return the way of one call."""
    walk = Walk(floor)
    sys.setprofile(walk)
    try:
        call()
    finally:
        sys.setprofile(None)
    return walk


def main() -> None:
    """Print both ways."""
    floor = floors()
    inputs = (torch.randn(2, 32),)
    palettizers = [
        KMeansPalettizer(nn.Sequential(nn.Linear(32, 16), nn.ReLU()).eval()) for _ in range(2)
    ]
    for last, palettizer in enumerate(palettizers):  # what is loaded once is no part of the way
        for name, call in (
            ("prepare", partial(palettizer.prepare, inputs)),
            ("finalize", partial(palettizer.finalize, backend="packed")),
        ):
            walk = watched(call, floor)
            if last:
                show(name, walk)


def show(name: str, walk: Walk) -> None:
    """Print the figures of a way, and its stays by depth."""
    stays = walk.stays()
    climbs = sum(walk.is_climb(step) for step in stays)
    modules = {step.target for step in stays}
    print(f"{name}: {len(stays)} stays in {len(modules)} modules, {climbs} climbs")
    for step in stays:
        climb = f"   climbs from {step.source}" if walk.is_climb(step) else ""
        print(f"  {'  ' * step.depth}{step.target}: {step.function}{climb}")


if __name__ == "__main__":
    main()
