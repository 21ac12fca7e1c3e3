"""Calibration mode from entering to leaving: measure, save, cluster again."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palette_core._common.progress import progress_bar
from palette_core._common.undoing import undone
from palette_core._common.warned import warn
from palette_core.engine.executor import Executor
from palette_core.engine.jobs import Job
from palette_core.engine.results import Clustered
from palette_core.errors import PlanError, SensitivityError, StateError
from palette_core.model.parametrization import ModuleSnapshot
from palette_core.palettizer.calibration_session import Calibration, LossFn
from palette_core.palettizer.gauge import Gauge
from palette_core.palettizer.palettized_weight import PalettizedWeight
from palette_core.palettizer.surroundings import (
    differentiable_recurrence,
    left_as_it_was,
    no_gradients_of_others,
)
from palette_core.storage.sensitivity_files import check_writable, save_sensitivities
from palette_core.storage.sites import PaletteSite, palette_sites
from palette_core.tensors.sensitivities import Sensitivity, fingerprint, from_squares


@dataclass(frozen=True)
class CalibrationOptions:
    """Options of calibration; see `KMeansPalettizer.calibration_mode`."""

    loss_fn: LossFn
    sensitivity_path: str | Path | None = None
    offload: bool = False
    executor: Executor = field(default_factory=Executor)


Sites = Sequence[PaletteSite[PalettizedWeight]]
Results = dict[PalettizedWeight, Clustered]


@contextlib.contextmanager
def calibration(
    model: nn.Module, options: CalibrationOptions, results: Results
) -> Iterator[Calibration]:
    """Measure inside of the block, and cluster anew on the way out.

    Args:
        model: a prepared one.
        options: how.
        results: filled with what has become of each weight.

    Raises:
        StateError: nothing is palettized, or there was no step.
        PlanError: an algorithm takes no sensitivities.
        SensitivityError: see `Calibration.step`.
        OSError: ``sensitivity_path`` cannot be written. Where this is found out at the end only,
            the model is calibrated all the same.
    """
    sites = palette_sites(model, PalettizedWeight)
    _check(sites, options)
    with left_as_it_was(model) as restore, _dense(sites):
        with (
            differentiable_recurrence(model),
            no_gradients_of_others(model, {id(site.original) for site in sites}),
            _gauges(sites, options.offload) as gauges,
        ):
            session = Calibration(gauges, options.loss_fn, restore)
            try:
                yield session
            finally:
                session.close()
            session.check_complete()
        measured = _sensitivities(sites, gauges, session.steps)
        unsaved = _save(options.sensitivity_path, measured)
        clustered = _cluster(sites, measured, options.executor)
    _take_over(sites, measured, clustered)
    results.update({site.palette: c for site, c in zip(sites, clustered, strict=True)})
    if unsaved is not None:
        raise unsaved


def sensitivities_of(model: nn.Module) -> dict[str, Sensitivity]:
    """Return the sensitivities that the palettes of a prepared model were found with.

    Raises:
        SensitivityError: there are none.
    """
    sites = palette_sites(model, PalettizedWeight)
    found = {s.name: s.palette.sensitivity for s in sites if s.palette.sensitivity is not None}
    if not found:
        raise SensitivityError(
            "No sensitivities found in the model; measure them in calibration_mode(), or "
            "prepare with sensitivity_path"
        )
    return found


# --- before -------------------------------------------------------------------------------------


def _check(sites: Sites, options: CalibrationOptions) -> None:
    """Refuse what would fail at the end."""
    if not callable(options.loss_fn):
        raise TypeError(f"loss_fn must be callable, got {type(options.loss_fn).__name__}")
    if not sites:
        raise StateError("no weight of the model is palettized, so there is none to calibrate")
    blind: dict[str, list[str]] = {}
    for site in sites:
        algorithm = site.palette.plan.algorithm
        if not options.executor.catalog.clusterers.get(algorithm).supports_importance:
            blind.setdefault(algorithm, []).append(site.name)
    if blind:
        which = "; ".join(f"{name!r} of {', '.join(names)}" for name, names in blind.items())
        raise PlanError(f"algorithms that do not take sensitivities: {which}; choose ones that do")
    if options.sensitivity_path is not None:
        check_writable(options.sensitivity_path)


# --- inside -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _dense(sites: Sites) -> Iterator[None]:
    """Let the dense weights through."""
    before = [(site.palette, site.palette.is_enabled) for site in sites]
    palettes = [item for item, _ in before]
    with undone(before, lambda item: item[0].enable(item[1])):
        for item in palettes:
            item.enable(False)
        yield


@contextlib.contextmanager
def _gauges(sites: Sites, offload: bool) -> Iterator[list[Gauge]]:
    device = torch.device("cpu") if offload else None
    gauges = [Gauge(site, written=_writes_to(site), device=device) for site in sites]
    handles: list[Any] = []
    torch.clear_autocast_cache()  # it may hold weights cast before they were measured
    with undone(handles, lambda handle: handle.remove()):
        for gauge, site in zip(gauges, sites, strict=True):
            if not _is_statistic(site):
                handles.append(site.palette.register_forward_hook(gauge.hook()))
        yield gauges


def _writes_to(site: PaletteSite[PalettizedWeight]) -> bool:
    """Embeddings with ``max_norm`` renormalise the rows that they look up."""
    return getattr(site.module, "max_norm", None) is not None


def _is_statistic(site: PaletteSite[PalettizedWeight]) -> bool:
    """Torch computes no gradients of running means and variances, and refuses to be asked."""
    return isinstance(site.module, nn.modules.batchnorm._NormBase) and site.state.startswith(
        "running_"
    )


# --- after --------------------------------------------------------------------------------------


def _sensitivities(sites: Sites, gauges: Sequence[Gauge], steps: int) -> dict[str, Sensitivity]:
    measured: dict[str, Sensitivity] = {}
    unreached: list[str] = []
    for site, gauge in zip(sites, gauges, strict=True):
        weight = _weight(site)
        squares = gauge.squares.take()
        if squares is None:
            unreached.append(site.name)
            squares = torch.zeros(weight.shape)
        scale = float(squares.max()) * gauge.squares.unit / steps
        values = from_squares(squares.cpu())
        known = scale if math.isfinite(scale) else None
        measured[site.name] = Sensitivity(values, fingerprint(weight), known, steps)
    if unreached:
        warn(
            f"no gradient but zero reached {', '.join(unreached)}; plain k-means there",
            stacklevel=2,
        )
    return measured


def _save(path: str | Path | None, measured: Mapping[str, Sensitivity]) -> OSError | None:
    """Write the file; a failure is returned, for it must not cost the calibration."""
    if path is not None:
        try:
            save_sensitivities(path, measured)
        except OSError as error:
            return error
    return None


def _cluster(
    sites: Sites,
    measured: Mapping[str, Sensitivity],
    executor: Executor,
) -> list[Clustered]:
    jobs = [Job(s.palette.plan, _weight(s), measured[s.name]) for s in sites]
    with progress_bar("Palettizing", len(jobs), show=executor.progress) as advance:
        return executor.run(jobs, advance)


def _take_over(
    sites: Sites, measured: Mapping[str, Sensitivity], clustered: Sequence[Clustered]
) -> None:
    """Install every palette, or none."""
    kept = ModuleSnapshot(site.palette for site in sites)
    # What is written in place: tables that an optimizer holds, and single values.
    parts = [t for s in sites for t in (*s.palette.parameters(), *s.palette.buffers())]
    values = [(t, t.detach().clone()) for t in parts if isinstance(t, nn.Parameter) or t.dim() == 0]
    try:
        for site, result in zip(sites, clustered, strict=True):
            site.palette.set_palettized(result.palettized)
            site.palette.sensitivity = measured[site.name]
    except BaseException:
        kept.restore()
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        raise


@torch.no_grad()
def _weight(site: PaletteSite[PalettizedWeight]) -> Tensor:
    return site.dense().detach()
