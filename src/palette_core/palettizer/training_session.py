"""Palettization-aware training: what happens between entering and leaving training mode."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self, final

from torch import nn

from palette_core.engine.executor import Executor
from palette_core.engine.jobs import Job
from palette_core.errors import StateError
from palette_core.palettizer.palettized_weight import PalettizedWeight
from palette_core.plugins.catalog import Catalog
from palette_core.storage.sites import PaletteSite, palette_sites

Sites = Iterable[PaletteSite[PalettizedWeight]]


@final
class TrainingSession:
    """A stay in training mode.

    Args:
        model: a prepared model, which knows how many steps it was trained before.
        catalog: the installed plug-ins.

    Attributes:
        steps: training steps done so far.

    Raises:
        StateError: no weight of the model is prepared.
    """

    def __init__(self, model: nn.Module, catalog: Catalog) -> None:
        self._sites = palette_sites(model, PalettizedWeight)
        if not self._sites:
            raise StateError("Model must be prepared before entering training mode")
        self._model = model
        self._catalog = catalog
        self._flags = [(module, module.training) for module in model.modules()]
        self.steps = max(site.palette.steps_done for site in self._sites)

    def __enter__(self) -> Self:
        for site in self._sites:
            if site.palette.trainer.start > self.steps:
                site.palette.enable(False)
        self._model.train()
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        for module, flag in self._flags:
            module.training = flag
        for site in self._sites:
            site.palette.train(site.palette.training)  # whatever was written to the weight, and how
        if kind is None:
            _settle(self._sites)

    def step(self) -> None:
        """Count a step; cluster the current values of weights whose schedule has come to it.

        Strategies that move their tables do so, for weights that are palettized already.
        """
        self.steps += 1
        for site in self._sites:
            if site.palette.is_enabled and site.palette.trainer.moves_lut:
                site.palette.advance(site.dense().detach())
            site.palette.count_step(self.steps)
        due = [site for site in self._sites if site.palette.trainer.start <= self.steps]
        _palettize_current(due, self._catalog)


def complete_training(sites: Sites, catalog: Catalog) -> None:
    """Make every palette what training has come to, and cluster what still trains dense.

    Raises:
        WeightError: a weight or its tables have become NaN or infinite.
        TrainingError: a strategy failed, or returned what is no assignment.
    """
    _settle(sites)
    _palettize_current(sites, catalog)


def _palettize_current(sites: Sites, catalog: Catalog) -> None:
    """Cluster the present values of weights that train dense, and let the palettes stand for them.

    Raises:
        WeightError: a weight has become NaN or infinite; then none is changed.
    """
    waiting = [site for site in sites if not site.palette.is_enabled]
    jobs = [
        Job(site.palette.plan, site.dense().detach(), site.palette.sensitivity) for site in waiting
    ]
    results = Executor(catalog=catalog).run(jobs)
    for site, result in zip(waiting, results, strict=True):
        site.palette.set_palettized(result.palettized)
        site.palette.enable(True)


def _settle(sites: Sites) -> None:
    for site in sites:
        if site.palette.has_learned:
            site.palette.settle(site.dense())
