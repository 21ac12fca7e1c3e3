"""Training strategies at work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from palette_core._common.autocast import autocast_off
from palette_core.errors import WeightError
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.kinds import TRAINING_STRATEGY
from palette_core.plugins.making import Made, make
from palette_core.plugins.training import TrainingStrategy
from palette_core.plugins.training_problem import TrainingProblem


def make_strategy(
    catalog: Catalog, name: str, options: Mapping[str, Any], tensor: str
) -> CheckedStrategy:
    """Make the training strategy ``name`` for one tensor.

    Raises:
        UnknownPluginError: nobody knows it.
        PluginOptionsError: its options do not validate.
        TrainingError: making it fails, or makes something else.
    """
    return CheckedStrategy(make(catalog[TRAINING_STRATEGY].find(name), options, tensor=tensor))


@dataclass(frozen=True)
class CheckedStrategy:
    """A training strategy with the weight that it works on; what it returns is checked.

    The methods raise:

    * WeightError: the dense weight or its tables have become NaN or infinite;
    * TrainingError: the strategy failed, or returned what cannot be used.

    Attributes:
        made: the plug-in's object.
    """

    made: Made[TrainingStrategy]

    def forward(self, problem: TrainingProblem, *, checked: bool = True) -> Tensor:
        """Return the weight in training mode; its values are looked at where ``checked``."""
        weight = problem.weight
        if checked:
            self.check_problem(problem)
        with autocast_off(weight.device.type):
            made = self._asked(problem, lambda strategy, given: strategy.forward(given))
        self._check_shape("a weight", made, weight.shape)
        if made.dtype is not weight.dtype:
            raise self.made.wrong(f"returned {made.dtype}, expected {weight.dtype}")
        if checked and not _finite(made):
            raise self.made.wrong("returned a weight with NaN or infinite values")
        return problem.zeros_kept_dense(made)

    def harden(self, problem: TrainingProblem) -> Tensor | None:
        """Return the codes that stand for the weight, or None where they stay."""
        self.check_problem(problem)
        codes = self._asked(problem, lambda strategy, given: strategy.harden(given))
        if codes is None:
            return None
        layout = problem.palettized.layout
        self._check_shape("codes", codes, (layout.n_blocks, layout.points_per_block))
        if codes.dtype is not torch.uint8:
            raise self.made.wrong(f"returned codes of {codes.dtype}, expected uint8")
        entries = 1 << problem.palettized.n_bits
        if int(codes.max()) >= entries:
            raise self.made.wrong(
                f"returned code {int(codes.max())}, expected codes below {entries}"
            )
        return problem.zeros_kept(problem.points(), codes)

    def advance(self, problem: TrainingProblem) -> Tensor | None:
        """Return the tables for the next step, or None where they stay."""
        self.check_problem(problem)
        with autocast_off(problem.weight.device.type):
            lut = self._asked(problem, lambda strategy, given: strategy.advance(given))
        if lut is None:
            return None
        self._check_shape("tables", lut, problem.lut.shape)
        if not lut.dtype.is_floating_point or not _finite(lut):
            raise self.made.wrong("returned tables with values that are not finite")
        if problem.zero_entries is not None:
            lut = lut.masked_fill(problem.zero_entries[..., None], 0.0)
        return cast("Tensor", lut)

    def check_problem(self, problem: TrainingProblem) -> None:
        """Raise a `WeightError` where the weight or its tables are not finite."""
        for what, tensor in (("the weight", problem.weight), ("its look-up table", problem.lut)):
            if not _finite(tensor):
                raise WeightError(
                    f"{self.made.tensor}: {what} has become NaN or infinite in training; lower the "
                    "learning rate, or clip the gradients"
                )

    def _asked(
        self, problem: TrainingProblem, call: Callable[[TrainingStrategy, TrainingProblem], Any]
    ) -> Any:
        made = self.made
        given = made.apart(problem)
        if given is not problem:
            given = replace(given, decode=lambda: made.apart(problem.decode()))
        answer = made.ask(lambda strategy: call(strategy, given), may_draw=True)
        if not isinstance(answer, Tensor):
            return answer
        made.demand_plain(answer, like=(type(problem.weight),))
        if answer.device != problem.weight.device:
            raise made.wrong(
                f"returned a tensor on {answer.device}, expected one on {problem.weight.device}"
            )
        return made.apart(answer)

    def _check_shape(self, what: str, made: Any, shape: tuple[int, ...]) -> None:
        if not isinstance(made, Tensor):
            raise self.made.wrong(f"returned {type(made).__name__}, expected {what}")
        if tuple(made.shape) != tuple(shape):
            raise self.made.wrong(
                f"returned {what} of shape {tuple(made.shape)}, expected {tuple(shape)}"
            )


def _finite(tensor: Tensor) -> bool:
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor.detach()))
