"""Writers that are killed, or find the disk full, anywhere: the older file or folder stays.

A case forks. The child writes over an older file, and is killed at the n-th step: before a line of
`palette_core._common.files` runs, or before a call to the operating system that Python audits
(open, rename, mkdir, …). The parent then looks, writes once more, and looks what is left behind.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from forks import fork
from torch import nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core._common import files
from palette_core.allocation.cache import LossFile
from palette_core.storage.sensitivity_files import save_sensitivities
from palette_core.tensors.sensitivities import Sensitivity

_WATCHED = files.__file__
_CALLS = ("open", "os.", "shutil.", "fcntl.", "tempfile.", "ctypes.", "attack.")


@dataclass
class Outcome:
    """What became of the cases, by kind, and the cases that broke the promise."""

    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


def kills(count: int, seed: int = 0) -> Outcome:
    """Kill ``count`` writers, each at a random step of those that it takes."""
    return _each(count, seed, _killed)


def full_disks(count: int, seed: int = 0) -> Outcome:
    """Let the disk be full from a random step on for ``count`` writers."""
    return _each(count, seed, _full)


Case = Callable[[random.Random, "Writer", Path], tuple[str, str]]


def _each(count: int, seed: int, case: Case) -> Outcome:
    made, outcome = random.Random(seed), Outcome()
    for number in range(count):
        writer = made.choice(WRITERS)
        folder = Path(tempfile.mkdtemp(prefix="attack-"))
        try:
            kind, broken = case(made, writer, folder)
        finally:
            shutil.rmtree(folder)
        outcome.counts[kind] += 1
        if broken:
            outcome.broken.append(f"seed {seed}, case {number}, {writer.__name__}: {broken}")
    return outcome


# --- kills ----------------------------------------------------------------------------------------


def _killed(made: random.Random, writer: Writer, folder: Path) -> tuple[str, str]:
    exchange = made.random() < 0.5  # in one step, or by two renames as elsewhere
    out = writer(folder, 1)
    older = _content(out)
    steps = _steps_of(writer)
    child = fork()
    if child == 0:
        _two_renames(not exchange)
        _at_step(made.randint(1, steps + 1), lambda: os.kill(os.getpid(), signal.SIGKILL))
        _leave(lambda: writer(folder, 2))
    _, status = os.waitpid(child, 0)
    kind = "killed" if os.WIFSIGNALED(status) else "finished"
    if exchange and not out.exists():
        return kind, "nothing stands there after the kill"
    child = fork()
    if child == 0:  # the next run, which finds the folder as a new process does
        _leave(lambda: _check_next(writer, folder, out, older))
    _, status = os.waitpid(child, 0)
    return kind, (folder.parent / f"{folder.name}.why").read_text() if status else ""


def _check_next(writer: Writer, folder: Path, out: Path, older: bytes) -> None:
    why = folder.parent / f"{folder.name}.why"
    why.write_text("the next run raised")
    files.clear_away(folder)
    newer = _content(writer(Path(tempfile.mkdtemp(dir=folder)), 2))
    problem = ""
    if not out.exists():
        problem = "the older one is gone"
    elif _content(out) not in (older, newer):
        problem = "neither the older nor the newer one stands there"
    else:
        writer(folder, 2)
        left = {entry.name for entry in folder.iterdir() if entry.name.startswith(".")}
        problem = f"left behind: {left}" if left else ""
    why.write_text(problem)
    if problem:
        raise AssertionError(problem)
    why.unlink()


# --- full disks -----------------------------------------------------------------------------------


def _full(made: random.Random, writer: Writer, folder: Path) -> tuple[str, str]:
    out = writer(folder, 1)
    older = _content(out)
    at = made.randint(1, _steps_of(writer, _grows))
    error: BaseException | None = None
    with _Full(at):
        try:
            writer(folder, 2)
        except BaseException as raised:
            error = raised
    left = [entry.name for entry in folder.iterdir() if entry != out]
    if error is None:
        return "written", f"left behind: {left}" if left else ""
    if not isinstance(error, OSError) or "No space" not in str(error):
        return "refused", f"raised {type(error).__name__}: {error}"
    if _content(out) != older:
        return "refused", "the older one is gone"
    return "refused", f"left behind: {left}" if left else ""


class _Full:
    """A disk that is full from the n-th step that needs space on."""

    def __init__(self, at: int) -> None:
        self._at = at

    def __enter__(self) -> None:
        _RUNNING[:] = [_Steps(self._at, _raise_full, _grows, repeat=True)]

    def __exit__(self, *exc: object) -> None:
        _RUNNING.clear()


def _raise_full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _grows(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a call needs space: opening to write, making folders, syncing what was written."""
    if event == "open":
        return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in ("os.mkdir", "attack.sync", "attack.write")


# --- steps ----------------------------------------------------------------------------------------


class _Steps:
    """Counts steps, and acts at one of them, or from it on."""

    def __init__(
        self,
        at: int,
        act: Callable[[], object],
        wanted: Callable[[str, tuple[Any, ...]], bool],
        *,
        repeat: bool = False,
    ) -> None:
        self.taken, self._at, self._act, self._wanted, self._repeat = 0, at, act, wanted, repeat
        self._process = os.getpid()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if os.getpid() != self._process or not self._wanted(event, arguments):
            return
        self.taken += 1
        if self.taken == self._at or (self._repeat and self.taken > self._at):
            self._act()


_RUNNING: list[_Steps] = []  # at most one


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _RUNNING and event.startswith(_CALLS):
        _RUNNING[0](event, arguments)


sys.addaudithook(_hook)
_real_sync, _real_save = os.fsync, torch.save


def _sync(handle: int) -> None:
    sys.audit("attack.sync", handle)
    _real_sync(handle)


os.fsync = _sync


def _lines(frame: Any, event: str, argument: Any) -> Any:
    if frame.f_code.co_filename != _WATCHED:
        return None
    if event == "line":
        sys.audit("attack.line", frame.f_lineno)
    return _lines


def _anything(event: str, arguments: tuple[Any, ...]) -> bool:
    del event, arguments
    return True


def _at_step(at: int, act: Callable[[], object]) -> None:
    sys.settrace(_lines)
    _RUNNING[:] = [_Steps(at, act, _anything)]


_known_steps: dict[tuple[Any, Any], int] = {}


def _steps_of(writer: Writer, wanted: Callable[..., bool] = _anything) -> int:
    """Return how many steps a writer takes to write over an older file."""
    if (writer, wanted) not in _known_steps:
        folder = Path(tempfile.mkdtemp(prefix="attack-"))
        writer(folder, 1)
        steps = _Steps(-1, lambda: None, wanted)
        _RUNNING[:] = [steps]
        sys.settrace(_lines)
        try:
            writer(folder, 2)
        finally:
            sys.settrace(None)
            _RUNNING.clear()
        shutil.rmtree(folder)
        _known_steps[writer, wanted] = steps.taken
    return _known_steps[writer, wanted]


def _leave(action: Callable[[], object]) -> None:
    """Run the rest of a forked child, and end it without the clean-up of its parent."""
    try:
        action()
    except BaseException:
        os._exit(1)
    os._exit(0)


def _two_renames(wanted: bool) -> None:
    if wanted:
        files._exchanged = lambda one, other: False


# --- what writes ----------------------------------------------------------------------------------

Writer = Callable[[Path, int], Path]
_CONFIGS = (None, KMeansPalettizerConfig.presets.w4(), KMeansPalettizerConfig.presets.w8())


def config_file(folder: Path, which: int) -> Path:
    _CONFIGS[which].to_yaml(folder / "config.yaml")
    return folder / "config.yaml"


def sensitivity_file(folder: Path, which: int) -> Path:
    values = torch.full((4, 4), float(which))
    save_sensitivities(folder / "s.safetensors", {"weight": Sensitivity(values, "", 1.0)})
    return folder / "s.safetensors"


def program_folder(folder: Path, which: int) -> Path:
    with files.atomic_path(folder / "m.program") as fresh:
        (fresh / "weights").mkdir(parents=True)
        for number in range(3):
            (fresh / "weights" / f"{number}.bin").write_bytes(bytes([which]) * 1000)
    return folder / "m.program"


def checkpoint(folder: Path, which: int) -> Path:
    path = folder / "m.safetensors"
    _PREPARED[which].export(path, backend="packed")
    return path


def loss_cache(folder: Path, which: int) -> Path:
    path = folder / "losses.json"
    known = LossFile(path)
    for number in range(1, which + 1):
        if known.get(f"key{number}") is None:
            known.add({f"key{number}": (number, 1.0)})
    return path


def _prepared(seed: int) -> KMeansPalettizer:
    torch.manual_seed(seed)
    palettizer = KMeansPalettizer(nn.Sequential(nn.Linear(16, 16)), None)
    palettizer.prepare((torch.randn(1, 16),), show_progress=False)
    palettizer.finalize(backend="packed")
    return palettizer


_PREPARED = [None, _prepared(1), _prepared(2)]
WRITERS: tuple[Writer, ...] = (
    config_file,
    sensitivity_file,
    program_folder,
    checkpoint,
    loss_cache,
)


def _content(path: Path) -> bytes:
    if path.is_dir():
        parts = sorted(part for part in path.rglob("*") if part.is_file())
        return b"".join(str(p.relative_to(path)).encode() + p.read_bytes() for p in parts)
    return path.read_bytes()
