"""A budget of bits spent by ``allocate`` and palettized with ``lnq``."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import methods
from tasks import TASKS, Task
from torch import Tensor, nn
from tune import teacher, tuned

from palette_core import KMeansPalettizer, KMeansPalettizerConfig, allocate
from palette_core.allocation import Allocation

LEAST = 0.0
"""The target that stands for the smallest candidate everywhere."""


@dataclass(frozen=True)
class Case:
    """One allocation, palettized.

    Attributes:
        target: bits per palettized weight with everything.
        candidates: clustered and judged for every weight.
        judged_by: the algorithm that candidates are clustered with.
        together: palettized in sequence, as it is to be used; or apart, as is predicted.
        limit: of calibration batches; 0 is all.
        tuned: what tables are tuned towards from there (``tune.py``), or nothing.
    """

    model: str
    group: int
    target: float
    metric: str
    candidates: tuple[int, ...]
    judged_by: str
    together: bool
    seed: int
    limit: int
    tuned: str = ""

    @property
    def key(self) -> str:
        *parts, tuned = asdict(self).values()
        return " | ".join([str(part) for part in parts] + [tuned] * bool(tuned))


@dataclass(frozen=True)
class Spent:
    """A palettized model, and what its bits were chosen by."""

    model: nn.Module
    allocation: Allocation
    seconds_allocating: float
    seconds: float


def spend(case: Case, task: Task, folder: Path) -> Spent:
    """Allocate, and palettize by the config that was written (YAML) to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    allocation = allocated(case, task, folder)
    allocating = time.perf_counter() - started
    how = ("" if case.together else "-apart") + (f"-{case.tuned}" if case.tuned else "")
    name = f"{case.model}-{case.group}-{case.metric}-{case.target:g}-{case.seed}{how}.yaml"
    path = folder / name
    config = with_lnq(allocation.config, bool(case.tuned)) if case.together else allocation.config
    config.to_yaml(path)
    squares = None
    if case.metric == "fisher" and case.judged_by == "kmeans1d" and not case.together:
        squares = sensitivities(case, folder)  # they weigh the clustering of candidates too
    started = time.perf_counter()
    model = palettized(case, task, KMeansPalettizerConfig.from_yaml(path), squares)
    return Spent(model, allocation, allocating, time.perf_counter() - started)


def allocated(case: Case, task: Task, folder: Path) -> Allocation:
    """Choose bits; judged candidates are kept in ``folder`` for all targets."""
    like = methods.Case(case.model, min(case.candidates), case.group, "", case.seed)
    config = KMeansPalettizerConfig.from_dict(
        methods.config_of(like, {"algorithm": case.judged_by})
    )
    target = case.target
    if target == LEAST:
        target = methods.planned_bits(like, task)[0]
    options = {"divergence": "kl" if task.lower_is_better else "mse"}
    with methods.expected_warnings():
        return allocate(
            task.model,
            config,
            task.batches[0],
            target_bpw=target,
            candidates=case.candidates,
            metric=case.metric,
            metric_options=options if case.metric == "output" else None,
            sensitivity_path=sensitivities(case, folder) if case.metric == "fisher" else None,
            batches=task.batches,
            cache=folder / f"{case.model}-{case.group}-{case.metric}-{case.seed}.cache.json",
        )


def sensitivities(case: Case, folder: Path) -> Path:
    """Write squared gradients, once for every target, and return their file."""
    path = folder / f"{case.model}-{case.group}-{case.seed}-{case.limit}.safetensors"
    if not path.exists():
        task = limited(TASKS[case.model](case.seed), case.limit)
        like = methods.Case(case.model, min(case.candidates), case.group, "", case.seed)
        config = KMeansPalettizerConfig.from_dict(methods.config_of(like, {}))
        palettizer = KMeansPalettizer(task.model, config)
        palettizer.prepare(task.batches[0])
        methods.weigh(palettizer, replace(task, loss=_per_label(case.model, task)))
        palettizer.save_sensitivities(path)
    return path


def _per_label(model: str, task: Task) -> Callable[[Any, Any], Tensor]:
    """Return a loss whose squared gradients are those of one label.

    That of a mean over n labels, which pull in different directions, is smaller by n.
    """

    def labels(batch: tuple[Tensor, ...]) -> int:
        if model == "smollm2":
            return batch[0][:, 1:].numel()
        return batch[1].shape[1] - 1 if model == "whisper" else len(batch[0])

    return lambda output, batch: task.loss(output, batch) * math.sqrt(labels(batch))


def with_lnq(config: KMeansPalettizerConfig, trained: bool) -> KMeansPalettizerConfig:
    """Return a config with another algorithm, and maybe strategy, in all of its specs."""
    plain = copy.deepcopy(config.to_dict())
    for module in plain["kmeans_palettization_config"]["module_name_configs"].values():
        for spec in module["module_state_spec"].values():
            spec["algorithm"], spec["algorithm_options"] = "lnq", {}
            spec["training_strategy"] = "tables" if trained else "frozen"
    return KMeansPalettizerConfig.from_dict(plain)


def palettized(
    case: Case, task: Task, config: KMeansPalettizerConfig, squares: Path | None
) -> nn.Module:
    """Palettize in sequence; or each weight apart, as candidates were clustered."""
    dense = teacher(task.model) if case.tuned else None
    palettizer = KMeansPalettizer(task.model, config)
    with methods.expected_warnings():
        palettizer.calibrate(task.batches, sequential=case.together)
        model = palettizer.prepare(
            task.batches[0],
            sensitivity_path=squares,
            show_progress=False,
        )
    if dense is not None:
        tuned(palettizer, model, dense, task, case.tuned)
    return model


def limited(task: Task, limit: int) -> Task:
    return replace(task, batches=task.batches[:limit]) if limit else task
