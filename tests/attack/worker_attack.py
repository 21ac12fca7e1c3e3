"""Workers that die or cannot be sent anything, and processes that share a folder of weights.

Whatever befalls a worker is an error of ours, and what was finished is kept for the next try, which
has the results of one process. Processes that finalize into one folder keep their own weights.
"""

from __future__ import annotations

import copy
import functools
import os
import random
import shutil
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from forks import fork
from torch import nn

from palette_core import KMeansPalettizer
from palette_core.engine import executor as execution
from palette_core.engine import workers
from palette_core.engine.executor import Executor
from palette_core.engine.jobs import Job
from palette_core.engine.kept import Kept
from palette_core.errors import PaletteError

INPUTS = (torch.ones(2, 16),)


@dataclass
class Outcome:
    """What became of the cases, by kind, and the cases that broke the promise."""

    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


def workers_that_fail(count: int, seed: int = 0) -> Outcome:
    """Let workers of ``count`` runs go wrong."""
    worth, execution._WORTH_A_WORKER = execution._WORTH_A_WORKER, 0
    try:
        return _each(FAILURES, count, seed)
    finally:
        execution._WORTH_A_WORKER = worth


def shared_folders(count: int, seed: int = 0) -> Outcome:
    """Let two processes finalize into one folder, ``count`` times.

    They are forked, which a process that has had workers of joblib had better not be.
    """
    return _each((shared_folder,), count, seed)


Case = Callable[[random.Random], tuple[str, str]]


def _each(cases: Sequence[Case], count: int, seed: int) -> Outcome:
    made, outcome = random.Random(seed), Outcome()
    for number in range(count):
        case = made.choice(cases)
        what, broken = case(made)
        outcome.counts[f"{case.__name__}: {what}"] += 1
        if broken:
            outcome.broken.append(f"seed {seed}, case {number}, {case.__name__}: {broken}")
    return outcome


# --- workers ------------------------------------------------------------------------------------


def _model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 8), nn.Linear(8, 8))


def _jobs() -> list[Job]:
    model = _model()
    weights = dict(model.named_parameters())
    plan = KMeansPalettizer(model).make_plan(INPUTS)
    return [Job(item, weights[item.name].detach()) for item in plan]


class _Deadly:
    def __reduce__(self) -> Any:
        return eval, ("__import__('os').kill(__import__('os').getpid(), 9)",)


class _Refuses:
    def __reduce__(self) -> Any:
        raise ValueError("no copies of me")


def killed_worker(made: random.Random) -> tuple[str, str]:
    return _spoilt(made, _Deadly())


def unsendable_options(made: random.Random) -> tuple[str, str]:
    return _spoilt(made, made.choice((threading.Lock, _Refuses))())


def _spoilt(made: random.Random, what: object) -> tuple[str, str]:
    jobs, kept, done = _jobs(), Kept(), []
    at = made.randrange(len(jobs))
    spoilt = list(jobs)
    spoilt[at] = replace(jobs[at], plan=replace(jobs[at].plan, rule=what))
    try:
        Executor(2, kept=kept).run(spoilt, lambda name, _: done.append(name))
    except PaletteError as error:
        kind = type(error).__name__
    except BaseException as error:
        return "foreign", f"{type(error).__name__}: {str(error)[:200]}"
    else:
        return "finished", "nothing has failed"
    if {job.plan.name for job in jobs if kept.find(job) is not None} != set(done):
        return kind, f"{done} were finished, and others are kept"
    if not _right(Executor(2, kept=kept).run(jobs)):
        return kind, "the next try has other results"
    return kind, ""


_ERRORS = (
    "type('Odd', (Exception,), {'__init__': lambda self, a, b: None})(1, 2)",
    "type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})()",
    "KeyboardInterrupt()",
    "RecursionError()",
    "__import__('concurrent.futures').futures.CancelledError()",
)


def odd_errors(made: random.Random) -> tuple[str, str]:
    raised = made.choice(_ERRORS)
    work = workers._work
    workers._work = eval(f"lambda *_: (_ for _ in ()).throw({raised})")
    try:
        Executor(2).run(_jobs())
    except PaletteError as error:
        return type(error).__name__, ""
    except BaseException as error:
        if "KeyboardInterrupt" in raised and isinstance(error, KeyboardInterrupt):
            return "interrupted", ""
        return "foreign", f"{raised}: {type(error).__name__}"
    finally:
        workers._work = work
    return "finished", f"{raised} got lost"


@functools.cache
def _expected() -> list[torch.Tensor]:
    return [result.palettized.decode() for result in Executor().run(_jobs())]


def _right(results: Any) -> bool:
    found = [result.palettized.decode() for result in results]
    return all(map(torch.equal, found, _expected()))


FAILURES: tuple[Case, ...] = (
    killed_worker,
    unsendable_options,
    odd_errors,
)


# --- one folder of weights ----------------------------------------------------------------------


@functools.cache
def _prepared(seed: int) -> KMeansPalettizer:
    palettizer = KMeansPalettizer(_model(seed).eval())
    palettizer.prepare(INPUTS, show_progress=False)
    return palettizer


def shared_folder(made: random.Random) -> tuple[str, str]:
    seeds = [made.randrange(4) for _ in range(2)]
    _warmed()
    for seed in seeds:
        _prepared(seed)  # in this process, once
    folder = Path(tempfile.mkdtemp(prefix="attack-"))
    children = []
    for number, seed in enumerate(seeds):
        child = fork()
        if child == 0:
            os._exit(_finalizes(folder, seed, interrupted=made.random() < 0.1 and number == 1))
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    left = [path.name for path in folder.rglob(".*")]
    shutil.rmtree(folder)
    why = {0: "", 1: "other outputs than before", 2: "an error"}
    broken = " and ".join(filter(None, (why.get(code, f"died of {-code}") for code in codes)))
    return ("broken" if broken else "right"), broken or (f"left behind: {left}" if left else "")


@functools.cache
def _warmed() -> None:
    """Import in this process what children would import each."""
    model = copy.deepcopy(_prepared(0)._model)
    KMeansPalettizer(model).finalize(backend="packed")(*INPUTS)


def _finalizes(folder: Path, seed: int, *, interrupted: bool) -> int:
    """Finalize models into a folder, one after the other, and look at all of them in the end."""
    warnings.simplefilter("ignore")
    os.fsync = lambda handle: None  # the disk is not what is tried here
    try:
        models = []
        for turn in range(3):
            model = copy.deepcopy(_prepared(seed)._model)
            expected = model(*INPUTS)
            palettizer = KMeansPalettizer(model)
            if interrupted and turn == 1:
                _fails_midway(palettizer, folder)
            palettizer.finalize(backend="packed", mmap_dir=folder)
            models.append((model, expected))
            if not all(torch.equal(each(*INPUTS), right) for each, right in models):
                return 1
        return 0
    except BaseException:
        return 2


def _fails_midway(palettizer: KMeansPalettizer, folder: Path) -> None:
    from palette_core.builtins.backends.packed import PackedBackend

    def fail(*_: object) -> nn.Module:
        raise RuntimeError

    real, PackedBackend.finalize = PackedBackend.finalize, fail
    try:
        palettizer.finalize(backend="packed", mmap_dir=folder)
    except PaletteError:
        pass
    finally:
        PackedBackend.finalize = real
