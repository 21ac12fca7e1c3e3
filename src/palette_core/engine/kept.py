"""Results of clustering that failed midway, for whoever tries again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, final

from torch import Tensor

from palette_core.engine.jobs import Job
from palette_core.engine.results import Clustered
from palette_core.planning import TensorPlan
from palette_core.tensors.sensitivities import fingerprint


@final
class Kept:
    """Finished results by what they were made of: plan, weight, importance and moments."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[TensorPlan, list[str], Clustered]] = {}

    def add(self, finished: Iterable[tuple[Job, Clustered]]) -> None:
        """Keep results."""
        for job, result in finished:
            self._found[job.plan.name] = job.plan, _made_of(job), result

    def find(self, job: Job) -> Clustered | None:
        """Return the result of an equal job, if it was kept."""
        plan, made_of, result = self._found.get(job.plan.name, (None, None, None))
        return result if plan == job.plan and made_of == _made_of(job) else None

    def __bool__(self) -> bool:
        return bool(self._found)

    def clear(self) -> None:
        """Forget all of them."""
        self._found.clear()


def _made_of(job: Job) -> list[str]:
    parts: list[Any] = [job.weight, job.importance]
    if job.moments is not None:
        parts += [getattr(job.moments, part.name) for part in fields(job.moments)]
    return [fingerprint(part) if isinstance(part, Tensor) else repr(part) for part in parts]
