"""Results of clustering that failed midway, for whoever tries again: in memory, or in a folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from palette_core._common.bounded_json import read_json
from palette_core._common.locks import Lock, can_lock
from palette_core._common.tensor_files import save_file
from palette_core.engine.jobs import Job
from palette_core.engine.origins import plugins_of
from palette_core.engine.results import Clustered
from palette_core.engine.views import LateView
from palette_core.errors import StateError
from palette_core.planning import TensorPlan
from palette_core.plugins.catalog import Catalog
from palette_core.storage.checksums import checksums_of, difference, sealed
from palette_core.tensors.dtypes import dtype_name, parse_dtype
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.sensitivities import fingerprint
from palette_core.version import __version__


class Keeper(Protocol):
    """Place for finished results, by what they were made of: plan, weight, importance, moments.

    Attributes:
        at_once: whether each result is to be added when it is there, and not only after a failure.
    """

    at_once: bool

    def add(self, finished: Iterable[tuple[Job, Clustered]]) -> None:
        """Keep results."""

    def find(self, job: Job) -> Clustered | None:
        """Return the result of an equal job, if it was kept."""

    def clear(self) -> None:
        """Forget all of them."""


@final
class Kept:
    """Results in memory, the last one of each weight."""

    at_once = False

    def __init__(self) -> None:
        self._found: dict[str, tuple[TensorPlan, list[str], Clustered]] = {}

    def add(self, finished: Iterable[tuple[Job, Clustered]]) -> None:
        """Keep results."""
        for job, result in finished:
            self._found[job.plan.name] = job.plan, _made_of(job), result

    def find(self, job: Job) -> Clustered | None:
        """Return the result of an equal job, if it was kept."""
        if job.plan.name not in self._found:
            return None
        plan, made_of, result = self._found[job.plan.name]
        return result if plan == job.plan and made_of == _made_of(job) else None

    def __bool__(self) -> bool:
        return bool(self._found)

    def clear(self) -> None:
        """Forget all of them."""
        self._found.clear()


@final
class KeptInFolder:
    """Results in a folder, a file each, which outlive the process; those that are damaged are none.

    Args:
        folder: made where it is missing, and held against other runs.
        catalog: plug-ins that make the results; those of another version make other ones.

    Raises:
        StateError: another run keeps its results there.
        OSError: the folder cannot be made.
    """

    at_once = True

    def __init__(self, folder: Path, catalog: Catalog) -> None:
        self._folder, self._catalog = folder, catalog
        folder.mkdir(exist_ok=True)
        self._held = Lock(folder)
        try:
            taken = self._held.take() if can_lock else True
        except OSError:  # a file system without locks
            taken = True
        if not taken:
            raise StateError(f"another run keeps its results in {folder}; wait for its end")

    def add(self, finished: Iterable[tuple[Job, Clustered]]) -> None:
        """Keep results.

        Raises:
            OSError: a file cannot be written.
        """
        for job, result in finished:
            path = self._path(job)
            if not path.exists():
                _write(path, result)

    def find(self, job: Job) -> Clustered | None:
        """Return the result of an equal job, if it was kept."""
        try:
            return _read(self._path(job), job.weight.device)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None

    def clear(self) -> None:
        """Forget nothing: whoever named the folder removes it."""

    def release(self) -> None:
        """Let others have the folder."""
        self._held.release()

    def _path(self, job: Job) -> Path:
        made = plugins_of([(job.plan, "", job.plan.spec.stored_form)], self._catalog)
        parts = [__version__, torch.__version__, made, repr(job.plan), _made_of(job)]
        text = json.dumps(parts).encode()
        return self._folder / f"{hashlib.sha256(text).hexdigest()[:32]}.safetensors"


@contextlib.contextmanager
def keeper_in(folder: str | Path | None, otherwise: Keeper, catalog: Catalog) -> Iterator[Keeper]:
    """Yield the keeper of a folder, or the other one where there is no folder.

    Raises:
        StateError: another run keeps its results there.
        OSError: the folder cannot be made.
    """
    if folder is None:
        yield otherwise
        return
    kept = KeptInFolder(Path(folder), catalog)
    try:
        yield kept
    finally:
        kept.release()


def _made_of(job: Job) -> list[str]:
    parts: list[Any] = [job.weight, job.importance]
    if job.moments is not None:
        parts += [getattr(job.moments, part.name) for part in fields(job.moments)]
    from palette_core._common.threads import map_threads  # numba loads slowly

    return map_threads(lambda x: fingerprint(x) if isinstance(x, Tensor) else repr(x), parts)


# --- files ----------------------------------------------------------------------------------------

_ABOUT = "result"
_PALETTIZED = "palettized"
_VIEW = "late_view"


def _write(path: Path, result: Clustered) -> None:
    made = vars(result.palettized)
    tensors = {n: v.detach().cpu().contiguous() for n, v in made.items() if isinstance(v, Tensor)}
    about = {n: v for n, v in vars(result).items() if n not in (_PALETTIZED, _VIEW)}
    about[_VIEW] = None if result.late_view is None else result.late_view.made.to_dict()
    told = {_PALETTIZED: _plain(made), _ABOUT: about}
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        save_file(tensors, fresh, {_ABOUT: sealed(told, tensors)})
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _plain(made: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in made.items() if not isinstance(value, Tensor)}
    return {**rest, "dtype": dtype_name(made["dtype"])}


def _read(path: Path, device: torch.device) -> Clustered:
    with safe_open(path, "pt") as file:
        text = file.metadata()[_ABOUT]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    told = read_json(text)
    assert isinstance(told, dict)
    sums = checksums_of(told, text)
    for name, tensor in tensors.items():
        if wrong := difference(name, tensor, sums):
            raise ValueError(wrong)
    plain = told[_PALETTIZED]
    made = {name: tensor.to(device) for name, tensor in tensors.items()}
    palettized = PalettizedTensor(**{**plain, "dtype": parse_dtype(plain["dtype"])}, **made)
    palettized.check()
    about = told[_ABOUT]
    return Clustered(palettized, **{**about, _VIEW: LateView.from_dict(about[_VIEW])})
