"""A model on its calibration batches while one stage after another becomes palettes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn

from palette_core._common.freed_memory import freed_is_kept
from palette_core._common.pytrees import floating
from palette_core._common.rng import all_rng, set_all_rng, untouched_global_rng
from palette_core._common.scratch import scratch_kept
from palette_core.errors import CalibrationError
from palette_core.planning import TensorPlan
from palette_core.statistics.activations.accumulate import Accumulator, Gap
from palette_core.statistics.activations.collect import moments_of
from palette_core.statistics.activations.judging import errors_of
from palette_core.statistics.activations.options import Findings, InputCalibration
from palette_core.statistics.activations.output_distance import why_nothing
from palette_core.statistics.activations.pausing import Pausing, Scout
from palette_core.statistics.activations.restarting import Copies, Replays, Restarting
from palette_core.statistics.activations.runs import Runner
from palette_core.statistics.activations.sources import Given, InputSource
from palette_core.statistics.activations.stages import find_stages
from palette_core.statistics.activations.structure import Step, Structure, find_structure
from palette_core.tensors.moments import InputMoments

SourceOf = Callable[[Runner, Structure, Mapping[str, Tensor]], InputSource]
"""Makes a source of the inputs of a model, of what is known of it, and of what weights become."""


class Feeder:
    """Feeds calibration batches to a model, as it was and as it is by now.

    Inside ``with feeder:`` the model is in evaluation mode. It is never written to: what stands
    for its weights by now is in ``decoded``.

    Args:
        model: the model.
        plans: of the weights to watch.
        calibration: batches for calibration, and held-out ones to judge by.
        findings: what has been found out before.
        source_of: makes another source of inputs than the two of this room, which run the model
            on every batch by what it has in memory.

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
        source_of: SourceOf | None = None,
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
        self._stay = contextlib.ExitStack()
        self._use(Structure((), {}, frozenset(), {}, {}, {}), range(0))
        self._source: InputSource | None = None
        self._source_of = source_of

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(untouched_global_rng())
            stack.enter_context(freed_is_kept())
            stack.enter_context(scratch_kept())
            stack.enter_context(self._runner)
            stack.callback(self.close)
            self._random = all_rng()
            self._stay = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stay.close()

    def close(self) -> None:
        """Let go of all inputs; may be called at any time."""
        if self._source is not None:
            self._source.close()
        self._source = None

    def _use(self, structure: Structure, batches: range) -> None:
        self._structure = structure
        self._replays = Replays(self._runner, structure, batches, self.decoded)

    # --- structure ------------------------------------------------------------------------------

    def look(self) -> Structure:
        """Run the unchanged model on all held-out batches, and return what it does.

        Raises:
            CalibrationError: it fails on one, or gives nothing to judge by.
        """
        self._use(self._look(self._held_out), self._held_out)
        return self._structure

    def start(self) -> Structure:
        """Begin to give inputs from runs that wait, as far as the first batch can be trusted.

        Runs the unchanged model on that batch, and on all that are held out; on all batches where
        runs cannot wait.

        Raises:
            CalibrationError: it fails on one, or gives nothing to judge by on a held-out one.
        """
        if self._source_of is not None:
            self._use(self._look_once(), self._held_out)
            self._source = self._source_of(self._runner, self._structure, self.decoded)
            return self._structure
        compensate = self.calibration.compensate
        copies = Copies() if compensate else None
        scout = Scout(self._runner, copies, takes_outputs=compensate and not self._weights)
        self._runner.hides()  # from now on
        structure = self._look([0, *self._held_out], scout)
        known = compensate or not self._weights  # how many inputs the unchanged model has
        if not known or not scout.may_wait(structure, self._n):
            return self.start_over()
        self._use(structure, self._held_out)
        self._source = Pausing(
            self._runner,
            structure,
            scout,
            self.decoded,
            range(self._n),
            compensate=compensate,
        )
        return structure

    def start_over(self) -> Structure:
        """Forget what has become of weights, and give inputs from runs that start over.

        Raises:
            CalibrationError: see `start`.
        """
        self.close()
        set_all_rng(self._random)  # runs that waited may have drawn between each other
        self.decoded.clear()
        self.missing = dict(self.findings.missing)
        every = range(len(self._runner.batches))
        self._use(self._look(every), every)
        self._source = Restarting(
            self._runner,
            self._structure,
            self._replays,
            self.decoded,
            range(self._n),
            compensate=self.calibration.compensate,
        )
        return self._structure

    def _look_once(self) -> Structure:
        """Look at as few batches as say what all of them use."""
        first = find_structure(self._runner, [0], keep=(), answers=False)
        once = {name for name, calls in first.calls.items() if calls == 1}
        if once == {plan.name for plan in self._runner.plans}:
            return first
        return find_structure(self._runner, range(self._n), keep=(), answers=False)

    def _look(self, batches: Sequence[int], scout: Scout | None = None) -> Structure:
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

        over = scout is None and self.calibration.compensate
        structure = find_structure(
            self._runner,
            batches,
            keep=batches if over else self._held_out,
            answers=scout is None or bool(self._held_out),
            check=check,
            on_seen=None if scout is None else scout.see,
            on_output=None if scout is None else scout.look,
        )
        # Stages may be judged by what they return themselves.
        if wordless and any(step.stage is None for step in structure.steps):
            raise CalibrationError(wordless[0])
        return structure

    @property
    def _held_out(self) -> range:
        return range(self._n, len(self._runner.batches))

    # --- moments --------------------------------------------------------------------------------

    def enter(self, stage: str | None, names: Sequence[str]) -> None:
        """Prepare for a stage, or for a step outside of stages; see `InputSource`."""
        assert self._source is not None
        self._source.enter(stage, names)

    def moments(
        self, step: Step, wanted: Mapping[str, tuple[TensorPlan, Tensor]]
    ) -> tuple[dict[str, InputMoments], Callable[[str], Gap | None]]:
        """Return moments of the weights of a step in the model as it is by now.

        Args:
            step: the weights.
            wanted: plans and values of those whose moments are needed, by name.

        Returns:
            usable moments by name; and `Accumulator.gap`.
        """
        alone = next(iter(wanted.values())) if len(wanted) == 1 else None
        sums = Accumulator(self.calibration.folder, alone)
        reasons: dict[str, str] = {}
        latest = 0

        def see(given: Given) -> None:
            nonlocal latest
            if given.batch != latest:
                sums.forget_inputs()
                latest = given.batch
            if given.what is None:
                reasons[given.name] = f"the inputs of {given.op_type!r} are not understood"
            elif given.name in wanted:
                # Experts are called in the order in which their inputs come.
                is_one = given.what.view.only() is not None
                earlier = given.before
                if earlier is not None and (is_one or not _alike(earlier, given.what.raw)):
                    earlier = None
                sums.add(given.name, given.what, self._counts(given), earlier, given.outputs)

        assert self._source is not None
        self._source.feed(step, see)
        found, missing = moments_of([plan for plan, _ in wanted.values()], sums, reasons)
        self.missing |= missing
        return found, sums.gap

    def _counts(self, given: Given) -> Tensor | None:
        """Return how much input vectors count, where they are as many as in the unchanged model.

        Palettized stages before it may send a weight other inputs, or more of them.
        """
        counts = self._weights.get((given.name, given.batch, given.call))
        if counts is None or given.what is None or not self.decoded:
            return counts
        usual = self._structure.shapes.get((given.name, given.batch, given.call))
        if usual is None and given.before is not None:
            usual = tuple(x.shape for x in given.before)
        return counts if usual == tuple(x.shape for x in given.what.raw) else None

    def leave(self, stage: str | None, *, changed: bool) -> None:
        """Note that a stage is settled; see `InputSource`."""
        assert self._source is not None
        self.finish(stage)
        if stage is not None:
            self._replays.keep(stage)
        self._source.leave(stage, changed=changed)

    def complete(self) -> None:
        """Note that there is no further stage; see `InputSource`."""
        assert self._source is not None
        self._source.complete()

    # --- outputs --------------------------------------------------------------------------------

    def finish(self, stage: str | None) -> None:
        """Let a stage of the unchanged model answer from memory from now on."""
        self._replays.finish(stage)

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
        known = self._replays.first if alone else self._replays.now
        rest = {} if alone else self.decoded
        changed = [{**rest, **mine} for mine in weights]
        return errors_of(stage, self._replays, self._runner, self._held_out, known, changed)


def _alike(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return len(a) == len(b) and all(x.shape == y.shape for x, y in zip(a, b, strict=True))
