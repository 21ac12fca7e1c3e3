"""Measurements of a prepared model by its example inputs: errors of outputs, and who makes them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from palette_core._common.progress import progress_bar
from palette_core._common.pytrees import deep_copy, floating
from palette_core._common.rng import untouched_global_rng
from palette_core._common.warned import warn
from palette_core.engine.results import Report
from palette_core.errors import CalibrationError
from palette_core.model import ExampleInputs, call_arguments, evaluation_mode, restored_state
from palette_core.palettizer.palettized_weight import PalettizedWeight
from palette_core.storage.packed_weight import PaletteModule
from palette_core.storage.sites import PaletteSite, palette_sites

_TRIED = 16  # weights that are made dense one after the other
Site = PaletteSite[PalettizedWeight]


@dataclass(frozen=True)
class OutputErrors:
    """Squared errors of outputs relative to the squares of the dense ones.

    Attributes:
        model: of the model; None where it returns no floating tensors, or zeros, or palettized NaN
            or infinity in the place of numbers.
        layers: of the layers that hold palettized weights, by the weight's name, each on the
            inputs that the palettized model gives it.
        shares: share of ``model`` that goes when one weight alone is dense, of those with the
            largest errors in ``layers``.
    """

    model: float | None
    layers: Mapping[str, float]
    shares: Mapping[str, float]


def with_errors(report: Report, found: OutputErrors) -> Report:
    """Return a report that tells the errors of outputs."""
    rows = (
        replace(row, output_error=found.layers.get(row.name), loss_share=found.shares.get(row.name))
        for row in report.tensors
    )
    run = replace(report.run, output_error=found.model)
    return replace(report, tensors=tuple(rows), run=run)


def output_errors(
    model: nn.Module, inputs: ExampleInputs, *, show_progress: bool | None = None
) -> OutputErrors:
    """Run a prepared model dense and palettized, and compare what comes out.

    The model runs in evaluation mode, once with every weight dense, once palettized, and at most
    16 times with one weight dense; it is afterwards as before.

    Raises:
        CalibrationError: the inputs cannot be copied, or the model fails on them.
    """
    sites = palette_sites(model, PalettizedWeight)
    with _runs(model, inputs) as run:
        with _dense(sites):
            expected = run()
        layers: dict[str, float] = {}
        with _comparing(sites, layers):
            got = run()
        error = _relative(got, expected)
        if error is None and any(not bool(x.isfinite().all()) for x in got):
            warn(
                "outputs of the palettized model are NaN or infinite; their error is not told",
                stacklevel=3,  # whoever called measure()
            )
        if not error:  # nothing to be shared out
            return OutputErrors(error, layers, {})
        tried = sorted((s for s in sites if s.name in layers), key=lambda s: -layers[s.name])
        shares: dict[str, float] = {}
        with progress_bar("Measuring", min(_TRIED, len(tried)), show=show_progress) as advance:
            for site in tried[:_TRIED]:
                with _dense([site]):
                    without = _relative(run(), expected)
                if without is not None:
                    shares[site.name] = 1 - without / error
                advance(site.name, 1)
    return OutputErrors(error, layers, shares)


@contextlib.contextmanager
def _runs(model: nn.Module, inputs: ExampleInputs) -> Iterator[Callable[[], list[Tensor]]]:
    """Yield what runs the model on inputs of its own, each time from the same state.

    It returns the floating tensors of the outputs.
    """
    others = [module for module in model.modules() if not isinstance(module, PaletteModule)]

    def run() -> list[Tensor]:
        try:
            args, kwargs = deep_copy(call_arguments(inputs))
        except TypeError as error:
            raise CalibrationError(f"the example inputs are for several runs: {error}") from error
        with torch.no_grad(), untouched_global_rng(), restored_state(others):
            try:
                return [tensor.clone() for tensor in floating(model(*args, **kwargs))]
            except Exception as error:
                what = f"{type(error).__name__}: {error}"
                raise CalibrationError(f"the model failed on the example inputs: {what}") from error

    with evaluation_mode(model):
        yield run


@contextlib.contextmanager
def _dense(sites: Iterable[Site]) -> Iterator[None]:
    enabled = [site.palette for site in sites if site.palette.is_enabled]
    try:
        for palette in enabled:
            palette.enable(False)
        yield
    finally:
        for palette in enabled:
            palette.enable(True)


@contextlib.contextmanager
def _comparing(sites: Iterable[Site], errors: dict[str, float]) -> Iterator[None]:
    """Compute what layers give with dense weights too, and write their errors down by name."""
    of_module: dict[nn.Module, list[Site]] = {}
    for site in sites:
        for module in dict.fromkeys(place.module for place in site.places):
            of_module.setdefault(module, []).append(site)
    sums: dict[str, list[float]] = {}

    comparing = False

    def compare(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal comparing
        if comparing:  # called by a module that is run once more
            return
        its, comparing = of_module[module], True
        try:
            with _dense(its):
                dense = floating(module.forward(*args, **kwargs))
        finally:
            comparing = False
        for got, expected in zip(floating(output), dense, strict=False):
            for site in its:
                error, norm = sums.setdefault(site.name, [0.0, 0.0])
                sums[site.name] = [error + _square(got - expected), norm + _square(expected)]

    hooks = [m.register_forward_hook(compare, with_kwargs=True) for m in of_module]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    errors |= {name: error / norm for name, (error, norm) in sums.items() if norm}


def _relative(got: list[Tensor], expected: list[Tensor]) -> float | None:
    norm = sum(_square(tensor) for tensor in expected)
    if not norm or [x.shape for x in got] != [x.shape for x in expected]:
        return None
    if any(bool((y.isfinite() & ~x.isfinite()).any()) for x, y in zip(got, expected, strict=True)):
        return None
    return sum(_square(x - y) for x, y in zip(got, expected, strict=True)) / norm


def _square(tensor: Tensor) -> float:
    return float(tensor.detach().double().nan_to_num(0.0, 0.0, 0.0).square().sum())
