"""One batch's run of a model, which waits before operations with weights that are no palettes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from palette_core._common.freed_memory import hand_back, hand_back_much
from palette_core._common.rng import all_rng, set_all_rng
from palette_core._common.undoing import undone
from palette_core.model import Change
from palette_core.statistics.activations.outputs import Noted, note, plain_outputs
from palette_core.statistics.activations.runs import Runner
from palette_core.statistics.activations.structure import Step
from palette_core.statistics.activations.threads import CannotWait, Waiting, settings
from palette_core.statistics.activations.watch import Seen

_LARGE = 1 << 23  # bytes of an input from which on what a run has freed is handed back


class PausedRun:
    """One batch's run, which waits before every operation with a weight that is not done.

    Args:
        runner: model and batches.
        batch: which one.
        weights: what to use in place of weights; grows.
        done: names of weights at which it does not wait; grows.
        known: names of weights that steps will come to; others cannot be waited at.
        reused: weights that may be used again.
        draws: it may draw random numbers: put the states that it has left aside while it waits.
    """

    def __init__(
        self,
        runner: Runner,
        batch: int,
        weights: Mapping[str, Tensor],
        done: set[str],
        known: set[str],
        reused: set[str],
        *,
        draws: bool,
    ) -> None:
        self._runner, self._batch, self._weights = runner, batch, weights
        self._done, self._known, self._reused = done, known, reused
        self._met = reused | done  # what was done before has been fed by runs before this one
        self._draws = draws
        self._at: Seen | None = None
        self._asked = ""  # the weight whose outputs are wanted
        self._noted: Noted | None = None
        self._changes: list[Change] = []
        self._random: Any = None
        self._waiting = Waiting(self._go)

    def advance(self, step: Step | None) -> Seen | None:
        """Let it run on to a weight that is not done, and return that where it is of a step."""
        while not self._waiting.ended and (self._at is None or self._at.name in self._done):
            self._resume()
        if step is None or self._at is None or self._at.name not in step.names:
            return None
        self._met.update(step.names)
        return self._at

    def show(
        self, step: Step, *, by_outputs: bool
    ) -> tuple[tuple[Tensor, ...] | None, Tensor | None]:
        """Return the inputs of a step or, if these are no longer held, `plain_outputs`."""
        at = self.advance(step)
        if at is None or at.what is None:
            return None, None
        raw = at.what.raw
        if not by_outputs or any(x.is_inference() for x in raw):
            return raw, None
        versions = [x._version for x in raw]
        self._asked = at.name
        self.go_on(step)
        noted, self._noted = self._noted, None
        made = None if noted is None else plain_outputs(noted)
        if made is None and versions != [x._version for x in raw]:
            raise CannotWait
        return (raw, None) if made is None else (None, made)

    def go_on(self, step: Step) -> None:
        """Let it run on past a step that is not done: the unchanged model awaits no palettes."""
        while not self._waiting.ended and self._at is not None and self._at.name in step.names:
            if self._is_new(self._at):
                raise CannotWait
            self._resume()

    def _resume(self) -> None:
        usual, set_so = all_rng() if self._draws else None, settings()
        for change in self._changes:
            change()
        if self._random is not None:
            set_all_rng(self._random)
        self._at, self._changes, self._random = None, [], None
        try:
            self._waiting.resume()
        except Exception as error:  # perhaps for the thread alone: runs that start over will tell
            raise CannotWait from error
        if self._waiting.ended:
            return
        if settings() != set_so:
            raise CannotWait
        if self._at is not None and input_size(self._at) >= _LARGE:
            hand_back_much() if self._waiting.lent else hand_back()
        self._changes = self._runner.taken()
        if usual is not None:
            self._put_aside(usual)
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch._C._cuda_clearCublasWorkspaces()  # one for every thread

    def _put_aside(self, usual: tuple[object, ...]) -> None:
        now = all_rng()
        if now != usual:
            self._random = now
            set_all_rng(usual)

    def _go(self, waiting: Waiting) -> None:
        def see(seen: Seen) -> None:
            if seen.name not in self._done:
                if seen.name not in self._known:
                    raise CannotWait
                self._at = seen
                waiting.wait()
            elif self._is_new(seen):  # palettized weights before it have sent inputs elsewhere
                raise CannotWait

        def look(seen: Seen, out: Any) -> Any:
            if seen.name == self._asked and seen.what is not None:
                self._asked, self._noted = "", note(seen.what, out)
            return out

        self._runner.run(
            self._batch, see, weights=self._weights, on_output=look, compute=waiting.compute
        )

    def _is_new(self, seen: Seen) -> bool:
        """Return whether a use of a weight that is done has not been fed to it."""
        return seen.name not in self._met or (seen.call > 0 and seen.name not in self._reused)

    def end(self) -> None:
        """Have it end."""
        self._waiting.end()

    def close(self) -> None:
        """End it."""
        self._at, self._noted, self._changes = None, None, []
        self._waiting.close()


def input_size(seen: Seen) -> int:
    """Return the bytes of what a weight is multiplied with."""
    return 0 if seen.what is None else sum(x.nbytes for x in seen.what.raw)


def close_all(runs: Sequence[PausedRun]) -> None:
    """End some runs."""
    # All are told before any is waited for: one may wait for what another holds.
    with undone(list(runs), PausedRun.close), undone(list(runs), PausedRun.end):
        pass
