"""From a target size to a config: cluster candidates, judge them, choose the best combination."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from palette_core._common.torch_state import torch_state_kept
from palette_core._common.warned import warn
from palette_core.allocation.candidates import (
    CandidateSpec,
    Judged,
    candidate_plans,
    checked,
    elements,
)
from palette_core.allocation.constraints import constrained
from palette_core.allocation.judging import Evidence, judge
from palette_core.allocation.solver import Choices, Solution, curve, solve
from palette_core.allocation.writing import config_of
from palette_core.config import KMeansPalettizerConfig
from palette_core.config.model import ConfigLike
from palette_core.engine.executor import Executor
from palette_core.errors import AllocationError
from palette_core.model import ExampleInputs, trace
from palette_core.planning import Plan, check_backend_named, make_plan, refuse_program
from palette_core.plugins.catalog import get_catalog
from palette_core.plugins.checked.backends import make_backend
from palette_core.plugins.checked.metrics import make_metric
from palette_core.storage.bits import model_bits
from palette_core.storage.sites import palette_sites

Over = Literal["palettized", "model"]


@dataclass(frozen=True)
class Allocated:
    """The decision about one tensor.

    Attributes:
        name: of the tensor.
        candidates: what could have been, with prices.
        chosen: which of them it is.
    """

    name: str
    candidates: tuple[Judged, ...]
    chosen: int

    @property
    def choice(self) -> Judged:
        """The chosen candidate."""
        return self.candidates[self.chosen]


@dataclass(frozen=True)
class Allocation:
    """A choice for every tensor, and what other targets would have given.

    Attributes:
        config: an ordinary config with one rule per tensor.
        tensors: in the order of the model.
        target_bpw: what was asked for, in bits per weight.
        over: whether that counts the palettized weights only, or the whole model.
        bits_per_weight: what it comes to, counted as asked.
        predicted_loss: the sum over tensors.
        lower_bound: no combination within the target is predicted to lose less than this.
        curve: bits per weight and predicted loss of optimal combinations at other targets.
        curve_choices: of each point of the curve, which candidate of each tensor it is made of.
    """

    config: KMeansPalettizerConfig
    tensors: tuple[Allocated, ...]
    target_bpw: float
    over: Over
    bits_per_weight: float
    predicted_loss: float
    lower_bound: float
    curve: tuple[tuple[float, float], ...]
    curve_choices: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; the config is not among them."""
        return {
            "target_bpw": self.target_bpw,
            "over": self.over,
            "bits_per_weight": self.bits_per_weight,
            "predicted_loss": self.predicted_loss,
            "lower_bound": self.lower_bound,
            "curve": [list(point) for point in self.curve],
            "tensors": [
                {
                    "name": tensor.name,
                    "chosen": tensor.chosen,
                    "candidates": [
                        {
                            "spec": candidate.plan.spec.model_dump(mode="json"),
                            "bits": candidate.bits,
                            "loss": candidate.loss,
                        }
                        for candidate in tensor.candidates
                    ],
                }
                for tensor in self.tensors
            ],
        }


def allocate(
    model: nn.Module,
    config: ConfigLike,
    example_inputs: ExampleInputs,
    *,
    target_bpw: float,
    candidates: Sequence[CandidateSpec] = (2, 3, 4, 6, 8),
    over: Over = "palettized",
    metric: str = "data_free",
    metric_options: Mapping[str, Any] | None = None,
    sensitivity_path: str | Path | None = None,
    batches: Iterable[Any] = (),
    fixed: Mapping[str, int] | None = None,
    minimum: Mapping[str, int] | None = None,
    exclude: Iterable[str] = (),
    backend: str | None = None,
    backend_options: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    cache: str | Path | None = None,
    num_workers: int = 1,
    show_progress: bool | None = None,
) -> Allocation:
    """Choose a spec for every tensor so that the model keeps a size and loses the least.

    Every candidate is clustered and its size counted exactly: indices, look-up tables, scales,
    and where the whole model counts, what stays dense. Predicted losses are added up, and the
    combination of the least sum within the budget is found exactly. The model is not changed.

    Args:
        model: a dense model.
        config: says which tensors are palettized and how; candidates change fields of its specs.
            None is the documented default.
        example_inputs: as for `KMeansPalettizer.prepare`.
        target_bpw: bits per weight on average, at most.
        candidates: bits, or fields of specs, such as ``{"n_bits": 4, "cluster_dim": 2}``. One
            that does not fit a tensor's shape is left out for it.
        over: what the average is taken over: ``"palettized"`` weights, or all of the ``"model"``.
        metric: name of a sensitivity metric; see ``palette plugins``.
        metric_options: its options.
        sensitivity_path: a file of sensitivities: for metrics that want squared gradients, and
            for weighted clustering by algorithms that take them.
        batches: model inputs, for metrics and algorithms that want them.
        fixed: bits by regular expression, which must match the whole name of a tensor. Bits that
            no candidate has are offered with the candidates' other fields.
        minimum: least bits by regular expression for whole names; of several the largest holds.
        exclude: regular expressions for whole names of tensors to be left dense.
        backend: leave out candidates that this export backend refuses.
        backend_options: its options.
        dynamic_shapes: those of the export, as for `KMeansPalettizer.export`.
        cache: a file (JSON lines) in which predicted losses are kept, so that an interrupted or
            repeated call goes on from there. Where a metric or an algorithm looks at batches,
            one that is kept holds for the same batches and an unchanged model only; else for an
            unchanged tensor.
        num_workers: clustering processes.
        show_progress: None shows a bar on a terminal.

    Raises:
        AllocationError: the target is too small, something that the metric needs is missing, an
            expression matches no tensor, ``fixed`` contradicts ``minimum`` or itself, no
            candidate is left for a tensor, or ``cache`` is a file of something else.
        OSError: ``cache`` cannot be written.
        PlanError: the backend cannot export operations of the model.
        UnknownPluginError, PluginOptionsError: see `KMeansPalettizer.prepare`.
        SensitivityError: the file does not fit.
        CalibrationError: the model failed on a batch, or one is empty.
        TypeError, ValueError: num_workers is no positive integer.
    """
    with torch_state_kept():
        catalog = get_catalog()
        if over not in ("palettized", "model"):
            raise AllocationError(f"over must be 'palettized' or 'model', got {over!r}")
        target_bpw = _checked_target(target_bpw)
        executor = Executor(num_workers, catalog, show_progress)
        specs = checked(candidates)
        entry = catalog.sensitivity_metrics.get(metric)
        judge_with = make_metric(catalog, metric, metric_options or {})
        target = None
        check_backend_named(backend, backend_options=backend_options, dynamic_shapes=dynamic_shapes)
        if backend is not None:
            target = make_backend(catalog, backend, backend_options or {})
        if palette_sites(model):
            raise AllocationError("the model is palettized already; allocate for the dense model")
        config = KMeansPalettizerConfig.of(config)
        graph = trace(model, example_inputs)
        plan = make_plan(graph, config, catalog)
        if target is not None:
            refuse_program(model, example_inputs, target, dynamic_shapes)
        warn(*plan.warnings, stacklevel=2)
        plan, limits = constrained(plan, fixed or {}, minimum or {}, exclude)
        plans = candidate_plans(plan, specs, catalog, target, limits)
        evidence = Evidence.gather(model, plan, plans, entry, sensitivity_path, batches, executor)
        judged = judge(
            plans,
            evidence,
            judge_with,
            entry,
            identity=(
                metric,
                dict(metric_options or {}),
                str(catalog.sensitivity_metrics.find(metric).distribution),
            ),
            cache=None if cache is None else Path(cache),
            executor=executor,
        )
        rest, weights = _what_counts(model, plan, over)
        choices = [
            Choices(np.array([j.bits for j in row], np.int64), np.array([j.loss for j in row]))
            for row in judged.values()
        ]
        solution = _solved(choices, target_bpw, rest, weights)
        others = curve(choices)
        tensors = tuple(
            Allocated(name, tuple(row), chosen)
            for (name, row), chosen in zip(judged.items(), solution.chosen, strict=True)
        )
        return Allocation(
            config=config_of((t.choice.plan for t in tensors), graph, config.seed, catalog),
            tensors=tensors,
            target_bpw=target_bpw,
            over=over,
            bits_per_weight=(solution.size + rest) / weights,
            predicted_loss=solution.loss,
            lower_bound=solution.bound,
            curve=tuple(((point.size + rest) / weights, point.loss) for point in others),
            curve_choices=tuple(point.chosen for point in others),
        )


def _solved(choices: Sequence[Choices], target_bpw: float, rest: int, weights: int) -> Solution:
    budget = _most_bits(target_bpw, weights) - rest
    least = sum(int(c.sizes.min()) for c in choices)
    if least > budget:
        raise AllocationError(
            f"target_bpw={target_bpw:g} cannot be reached: the smallest candidates give "
            f"{(least + rest) / weights:.3f} bits per weight; raise the target, allow fewer bits, "
            "or palettize more of the model"
        )
    return solve(choices, budget)


def _most_bits(target_bpw: float, weights: int) -> int:
    """Return the largest number of bits whose average, as a float, is at most the target."""
    bits = math.floor(Fraction(target_bpw) * weights)
    # An average that was rounded down, such as a point of a curve, stands for its own bits.
    return bits + 1 if (bits + 1) / weights <= target_bpw else bits


def _checked_target(target_bpw: Any) -> float:
    real = isinstance(target_bpw, Real) and not isinstance(target_bpw, bool)
    if not real or not 0 < target_bpw < math.inf:
        raise AllocationError(
            f"target_bpw must be positive and finite, in bits per weight, got {target_bpw!r}"
        )
    return float(target_bpw)


def _what_counts(model: nn.Module, plan: Plan, over: Over) -> tuple[int, int]:
    """Return bits that no choice changes, and the number of weights of the average."""
    palettized = elements(plan)
    if over == "palettized":
        return 0, palettized
    bits, total = model_bits(model)
    dense = sum(elements([p]) * p.dtype.itemsize * 8 for p in plan)
    return bits - dense, total
