"""Palettization-aware training: what happens between entering and leaving training mode."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self, final

from torch import nn

from palette_core._common.rng import untouched_global_rng
from palette_core.engine.executor import Job, run_jobs
from palette_core.errors import StateError
from palette_core.model.parametrization import chain_input
from palette_core.palettizer.palettized_weight import PalettizedWeight
from palette_core.plugins.catalog import Catalog
from palette_core.storage.packed_weight import palette_modules

Place = tuple[nn.Module, str, PalettizedWeight]


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
        self._places: dict[int, Place] = {
            id(item): (module, state, item)
            for _, module, state, item in palette_modules(model)
            if isinstance(item, PalettizedWeight)
        }
        if not self._places:
            raise StateError("Model must be prepared before entering training mode")
        self._model = model
        self._catalog = catalog
        self._flags = [(module, module.training) for module in model.modules()]
        self.steps = max(item.steps_done for _, _, item in self._places.values())

    def __enter__(self) -> Self:
        for _, _, item in self._places.values():
            if item.start > self.steps:
                item.enable(False)
        self._model.train()
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        for module, flag in self._flags:
            module.training = flag
        for _, _, item in self._places.values():
            item.train(item.training)  # whatever was written to the weight, and how
        if kind is None:
            settle_trained(self._places.values())

    def step(self) -> None:
        """Count a step; cluster the current values of weights whose schedule has come to it.

        Strategies that move their tables do so, for weights that are palettized already.
        """
        self.steps += 1
        for module, state, item in self._places.values():
            if item.moves_now:
                item.advance(chain_input(module, state, item).detach())
            item.count_step(self.steps)
        due = [place for place in self._places.values() if place[2].start <= self.steps]
        palettize_current(due, self._catalog)


def palettize_current(places: Iterable[Place], catalog: Catalog) -> None:
    """Cluster the present values of weights that train dense, and let the palettes stand for them.

    Raises:
        WeightError: a weight has become NaN or infinite; then none is changed.
    """
    waiting = list({id(place[2]): place for place in places if not place[2].is_enabled}.values())
    jobs = [
        Job(
            item.plan,
            chain_input(module, state, item).detach(),
            None if item.sensitivity is None else item.sensitivity.values,
        )
        for module, state, item in waiting
    ]
    with untouched_global_rng():
        results = run_jobs(jobs, catalog=catalog)
    for (_, _, item), result in zip(waiting, results, strict=True):
        item.set_palettized(result.palettized)
        item.enable(True)


def settle_trained(places: Iterable[Place]) -> None:
    """Make every palette what training has come to.

    Raises:
        WeightError: a weight or its tables have become NaN or infinite.
        TrainingError: a strategy failed, or returned what is no assignment.
    """
    for module, state, item in {id(place[2]): place for place in places}.values():
        item.settle(chain_input(module, state, item))
