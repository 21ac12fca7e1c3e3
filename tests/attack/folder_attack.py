"""Folders of checkpoints that were damaged or edited, and runs that write them and are killed.

A dense folder with a change is refused by an error of ours, or palettized for what it says. A
palettized one says what it said, or is refused, and comparing it with its source finds any change
of any byte. A run that is killed anywhere is gone on from, and writes what it would have written.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import small_decoders
import torch
from checkpoint_folders import CONFIG, content, write_folder
from forks import fork

from palette_core import palettize_checkpoint, read_checkpoint
from palette_core.errors import PaletteError
from palette_core.streaming.verifying import compare_checkpoints


@dataclass
class Outcome:
    """What became of the cases, by kind, and the cases that broke the promise."""

    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


Case = Callable[[random.Random, Path], tuple[str, str]]


def mutants(count: int, seed: int = 0) -> Outcome:
    """Change ``count`` folders, half of them dense ones and half palettized ones."""
    return _each(count, seed, (_dense, _palettized))


def kills(count: int, seed: int = 0) -> Outcome:
    """Kill ``count`` runs, each at a random time of those that it takes."""
    return _each(count, seed, (_killed,))


def block_kills(count: int, seed: int = 0) -> Outcome:
    """Kill ``count`` runs that calibrate block by block, each at a random time."""
    return _each(count, seed, (_killed_by_block,), _by_block)


def _at_once(folder: Path) -> None:
    if not (folder / "src").exists():
        write_folder(folder / "src", layers=2)
    palettize_checkpoint(folder / "src", CONFIG, folder / "out")


def _by_block(folder: Path) -> None:
    model = small_decoders.decoder("tuple")
    if not (folder / "src").exists():
        small_decoders.write_decoder(model, folder / "src")
    palettize_checkpoint(
        folder / "src",
        small_decoders.config(),
        folder / "out",
        calibration=small_decoders.batches(2),
        skeleton=small_decoders.skeleton_of(model),
    )


Action = Callable[[Path], None]


def _each(count: int, seed: int, cases: tuple[Case, ...], palettize: Action = _at_once) -> Outcome:
    made, outcome = random.Random(seed), Outcome()
    with tempfile.TemporaryDirectory(prefix="attack-") as whole, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        palettize(Path(whole))  # kernels are compiled
        times = []
        for _ in range(3):
            shutil.rmtree(Path(whole) / "out")
            started = time.perf_counter()
            palettize(Path(whole))
            times.append(time.perf_counter() - started)
        # The shortest: after a time that something else made long, no run would be there to kill.
        _seconds[:] = [min(times)]
        for number in range(count):
            case = cases[number % len(cases)]
            with tempfile.TemporaryDirectory(prefix="attack-") as copy:
                shutil.copytree(whole, copy, dirs_exist_ok=True)
                kind, broken = case(made, Path(copy))
            outcome.counts[f"{case.__name__[1:]} {kind}"] += 1
            if broken:
                outcome.broken.append(f"seed {seed}, case {number}, {case.__name__}: {broken}")
    return outcome


_seconds = [0.0]  # that a run takes


# --- folders that were changed --------------------------------------------------------------------


def _dense(made: random.Random, folder: Path) -> tuple[str, str]:
    how = _change(made, folder / "src")
    shutil.rmtree(folder / "out")
    try:
        palettize_checkpoint(folder / "src", CONFIG, folder / "out")
        same = compare_checkpoints(folder / "src", folder / "out").passed
    except (PaletteError, OSError) as error:
        return "refused", "" if str(error) else f"{how}: an error without words"
    except BaseException as error:
        return "foreign", f"{how}: {type(error).__name__}: {str(error)[:200]}"
    return "palettized", "" if same else f"{how}: what was written is not what was there"


def _palettized(made: random.Random, folder: Path) -> tuple[str, str]:
    out = folder / "out"
    before, whole = content(out), read_checkpoint(out)
    how = _change(made, out)
    if content(out) == before:
        return "the same", ""
    kind = "read the same"
    try:
        found = read_checkpoint(out)
        if not _are_same(found.dense, whole.dense) or any(
            not torch.equal(found.palettized[name].decode(), tensor.decode())
            for name, tensor in whole.palettized.items()
        ):
            return "silent", f"{how}: it says something else"
    except (PaletteError, OSError):
        kind = "refused"
    except BaseException as error:
        return "foreign", f"{how}: {type(error).__name__}: {str(error)[:200]}"
    try:
        found_out = not compare_checkpoints(folder / "src", out).passed
    except (PaletteError, OSError):
        found_out = True
    except BaseException as error:
        return "foreign", f"{how}, compared: {type(error).__name__}: {str(error)[:200]}"
    return kind, "" if found_out else f"{how}: compared, and not found"


def _are_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def _change(made: random.Random, folder: Path) -> str:
    path = made.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    data = bytearray(path.read_bytes())
    path.unlink()  # what was read before is mapped from it
    path.write_bytes(data)
    change = made.choice(_CHANGES)
    change(made, path, data)
    return f"{path.relative_to(folder)}: {change.__name__}"


def _flip_a_byte(made: random.Random, path: Path, data: bytearray) -> None:
    data[made.randrange(len(data))] ^= made.randrange(1, 256)
    path.write_bytes(data)


def _flip_a_byte_of_the_header(made: random.Random, path: Path, data: bytearray) -> None:
    data[made.randrange(min(len(data), 600))] ^= made.randrange(1, 256)
    path.write_bytes(data)


def _cut(made: random.Random, path: Path, data: bytearray) -> None:
    path.write_bytes(data[: made.randrange(len(data))])


def _lengthen(made: random.Random, path: Path, data: bytearray) -> None:
    path.write_bytes(bytes(data) + made.randbytes(made.randint(1, 64)))


def _remove(made: random.Random, path: Path, data: bytearray) -> None:
    del made, data
    path.unlink()


def _put_another_in_its_place(made: random.Random, path: Path, data: bytearray) -> None:
    others = [other for other in path.parent.iterdir() if other.is_file() and other != path]
    path.write_bytes(made.choice(sorted(others)).read_bytes())


def _edit_the_text(made: random.Random, path: Path, data: bytearray) -> None:
    """Change a value of JSON: of the file, or of the header of its tensors."""
    size = int.from_bytes(data[:8], "little") if path.suffix == ".safetensors" else 0
    start, end = (8, 8 + size) if size else (0, len(data))
    try:
        value = json.loads(data[start:end])
    except ValueError:
        return
    if not isinstance(value, dict) or not value:
        return
    where = value
    while True:
        key = made.choice(sorted(where))
        if not isinstance(where[key], dict) or not where[key] or made.random() < 0.2:
            break
        where = where[key]
    where[key] = made.choice(_VALUES)
    text = json.dumps(value).encode()
    head = len(text).to_bytes(8, "little") if size else b""
    path.write_bytes(head + text + bytes(data[end:] if size else b""))


_VALUES = (
    None, True, -1, 0, 1 << 40, 1 << 62, 1e300, "", "F32", "../x", "\ud800", [], [1 << 40, 1 << 40],
    [0, 1 << 50], [-1], {}, {"a": 1}, "x" * 1000,
)  # fmt: skip
_CHANGES = (
    _flip_a_byte,
    _flip_a_byte_of_the_header,
    _cut,
    _lengthen,
    _remove,
    _put_another_in_its_place,
    _edit_the_text,
    _edit_the_text,
)


# --- kills ----------------------------------------------------------------------------------------


def _killed(made: random.Random, folder: Path) -> tuple[str, str]:
    return _killed_in(_at_once, made, folder)


def _killed_by_block(made: random.Random, folder: Path) -> tuple[str, str]:
    return _killed_in(_by_block, made, folder)


def _killed_in(palettize: Action, made: random.Random, folder: Path) -> tuple[str, str]:
    whole = content(folder / "out")
    shutil.rmtree(folder / "out")
    kills_of_it = 0
    for _ in range(made.randint(1, 4)):
        child = fork()
        if child == 0:
            _leave(lambda: palettize(folder))
        time.sleep(made.uniform(0, 1.2 * _seconds[0]))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills_of_it += os.WIFSIGNALED(status)
    try:
        palettize(folder)
    except BaseException as error:
        return "killed", f"the next run raised {type(error).__name__}: {error}"
    found = content(folder / "out")
    names = sorted(name for name in {*whole, *found} if whole.get(name) != found.get(name))
    return f"{kills_of_it} times", f"not as without a kill: {names}" if names else ""


def _leave(action: Callable[[], object]) -> None:
    """Run the rest of a forked child, and end it without the clean-up of its parent."""
    try:
        action()
    except BaseException:
        os._exit(1)
    os._exit(0)
