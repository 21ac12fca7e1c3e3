"""A model on its calibration batches while one stage after another becomes palettes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn

from palette_core._common.pytrees import deep_copy, floating
from palette_core.errors import CalibrationError
from palette_core.planning import TensorPlan
from palette_core.statistics.activations.accumulate import Accumulator
from palette_core.statistics.activations.collect import CallKey, moments_of
from palette_core.statistics.activations.comparing import distance, why_nothing
from palette_core.statistics.activations.options import Findings, InputCalibration
from palette_core.statistics.activations.runs import Runner, Stop
from palette_core.statistics.activations.stages import find_stages
from palette_core.statistics.activations.structure import Step, Structure, find_structure
from palette_core.statistics.activations.watch import Seen
from palette_core.tensors.moments import InputMoments

Inputs = Mapping[CallKey, tuple[Tensor, ...]]
"""What weights are multiplied with, by call."""


class Feeder:
    """Feeds calibration batches to a model, as it was and as it is by now.

    Inside ``with feeder:`` the model is in evaluation mode. It is never written to: what stands
    for its weights by now is in ``decoded``.

    Args:
        model: the model.
        plans: of the weights to watch.
        calibration: batches for calibration, and held-out ones to judge by.
        findings: what has been found out before.

    Attributes:
        calibration, findings: as above.
        decoded: what stands for weights by now, by name.
        missing: why a weight that needs moments has none, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        plans: Sequence[TensorPlan],
        calibration: InputCalibration,
        findings: Findings,
    ) -> None:
        self.decoded: dict[str, Tensor] = {}
        self.missing: dict[str, str] = dict(findings.missing)
        self.calibration = calibration
        self.findings = findings
        self._weights = findings.weights or {}
        self._n = len(calibration.batches)
        batches = (*calibration.batches, *calibration.held_out)
        stages = find_stages(model, plans, calibration.stages)
        self._runner = Runner(model, plans, batches, stages, self._n)
        self._structure = Structure((), {}, frozenset(), {}, {})
        # Outputs of finished stages by batch: of the unchanged model, and as it is by now.
        self._first: list[dict[str, Any]] = [{} for _ in batches]
        self._now: list[dict[str, Any]] = [{} for _ in batches]

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._runner.__exit__(*exc)

    def look(self, *, held_out_only: bool = False) -> Structure:
        """Run the unchanged model on all batches, and return what it does.

        Raises:
            CalibrationError: it fails on one, or gives nothing to judge by on a held-out one.
        """
        batches = range(self._n if held_out_only else 0, len(self._runner.batches))
        keep = self.calibration.compensate or bool(self.calibration.held_out)
        wordless: list[str] = []

        def check(batch: int, output: Any) -> None:
            why = why_nothing(output) if batch >= self._n else None
            if why is not None:
                wordless.append(
                    f"nothing can be judged by {self._runner.label(batch)}: what the unchanged "
                    f"model returns on it {why}"
                )
                if floating(output):
                    raise CalibrationError(wordless[0])

        self._structure = find_structure(self._runner, batches, keep=keep, check=check)
        # Stages may be judged by what they return themselves.
        if wordless and any(step.stage is None for step in self._structure.steps):
            raise CalibrationError(wordless[0])
        return self._structure

    # --- moments --------------------------------------------------------------------------------

    def inputs_before(self, stage: str | None, names: Sequence[str]) -> Inputs:
        """Return what the unchanged model multiplies some weights of a stage with."""
        found: dict[CallKey, tuple[Tensor, ...]] = {}
        for batch in range(self._n):
            copies: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

            def copy(x: Tensor, copies: dict[Any, Any] = copies) -> Tensor:
                key = (id(x), x._version)
                if key not in copies:
                    copies[key] = (x, x.detach().clone())
                return copies[key][1]  # type: ignore[no-any-return]

            def see(
                seen: Seen, batch: int = batch, copy: Callable[[Tensor], Tensor] = copy
            ) -> None:
                if seen.what is not None:
                    key = (seen.name, batch, seen.call)
                    found[key] = tuple(copy(x) for x in seen.what.raw)

            self._runner.run(
                batch,
                self._structure.until(names, see),
                answers=self._first[batch],
                keep=_stop_after(stage),
            )
        return found

    def moments(
        self, step: Step, wanted: Sequence[TensorPlan], before: Inputs | None
    ) -> tuple[dict[str, InputMoments], Callable[[str], Tensor | None]]:
        """Return moments of the weights of a step in the model as it is by now.

        Args:
            step: the weights.
            wanted: plans of those whose moments are needed.
            before: inputs in the unchanged model, to compensate for what has changed; or None.

        Returns:
            usable moments by name; and what gives the sums of `Accumulator.cross` by name.
        """
        sums = Accumulator(self.calibration.folder)
        reasons: dict[str, str] = {}
        names = {plan.name for plan in wanted}

        for batch in range(self._n) if wanted else ():

            def see(seen: Seen, batch: int = batch) -> None:
                key = (seen.name, batch, seen.call)
                if seen.what is None:
                    reasons[seen.name] = f"the inputs of {seen.op_type!r} are not understood"
                elif seen.name in names:
                    earlier = None if before is None else before.get(key)
                    # Experts are called in the order in which their inputs come.
                    is_one = seen.what.view.only() is not None
                    if earlier is not None and (is_one or not _alike(earlier, seen.what.raw)):
                        earlier = None
                    # Palettized stages before it may send it other inputs, or more of them.
                    shapes = tuple(x.shape for x in seen.what.raw)
                    counts = None
                    if self._structure.shapes.get(key) == shapes:
                        counts = self._weights.get(key)
                    sums.add(seen.name, seen.what, counts, earlier)

            self._runner.run(
                batch,
                self._structure.until(step.names, see),
                weights=self.decoded,
                answers=self._now[batch],
                keep=_stop_after(step.stage),
            )
            sums.forget_inputs()
        found, missing = moments_of(wanted, sums, reasons)
        self.missing |= missing
        return found, sums.cross

    # --- outputs --------------------------------------------------------------------------------

    def keep_outputs(self, stage: str) -> None:
        """Run a palettized stage on every batch, and let it answer from memory from now on."""
        for batch, known in enumerate(self._now):
            ran, output = self._output(stage, batch, known, self.decoded)
            if ran:
                known[stage] = output

    def finish(self, stage: str | None) -> None:
        """Let a stage of the unchanged model answer from memory from now on."""
        for batch, outputs in self._structure.outputs.items():
            if stage is not None and stage in outputs:
                self._first[batch][stage] = outputs[stage]

    def errors(
        self,
        stage: str | None,
        weights: Sequence[Mapping[str, Tensor]],
        *,
        alone: bool,
    ) -> list[float]:
        """Return how far a stage's outputs on held-out batches are from the unchanged model's.

        Args:
            stage: its name; None judges by the outputs of the model.
            weights: what to use in place of weights, by name: one error for each.
            alone: everything else is as in the unchanged model, rather than as it is by now.

        Raises:
            CalibrationError: there is nothing to judge by.
        """
        totals = [0.0] * len(weights)
        answers = self._first if alone else self._now
        rest = {} if alone else self.decoded
        changed = [{**rest, **mine} for mine in weights]
        for batch in range(self._n, len(self._runner.batches)):
            for i, error in enumerate(self._errors(stage, batch, answers[batch], changed)):
                totals[i] += error
        return totals

    def _errors(
        self,
        stage: str | None,
        batch: int,
        answers: Mapping[str, Any],
        weights: Sequence[Mapping[str, Tensor]],
    ) -> list[float]:
        ran, truth = self._output(stage, batch, self._first[batch], {})
        others = [self._output(stage, batch, answers, changed) for changed in weights]
        if any(also != ran for also, _ in others):
            # Its weights decide whether it runs: only the model's own outputs can be compared.
            return self._errors(None, batch, answers, weights)
        why = why_nothing(truth)
        if why is not None:
            raise CalibrationError(
                f"{stage or 'the model'} cannot be judged by {self._runner.label(batch)}: what "
                f"the unchanged one returns on it {why}"
            )
        return [distance(truth, other) for _, other in others]

    def _output(
        self, stage: str | None, batch: int, answers: Mapping[str, Any], weights: Mapping[str, Any]
    ) -> tuple[bool, Any]:
        """Return what a stage returns; where it is None, or does not run, what the model does."""
        kept: list[Any] = []

        def keep(name: str, output: Any) -> None:
            if name == stage:
                kept.append(deep_copy(output))
                raise Stop

        whole = self._runner.run(
            batch, weights=weights, answers=answers, keep=None if stage is None else keep
        )
        return (True, kept[0]) if kept else (False, whole)


def _stop_after(stage: str | None) -> Callable[[str, Any], None] | None:
    def stop(name: str, output: Any) -> None:
        del output
        if name == stage:
            raise Stop

    return None if stage is None else stop


def _alike(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return len(a) == len(b) and all(x.shape == y.shape for x, y in zip(a, b, strict=True))
