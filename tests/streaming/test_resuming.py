"""Runs that were killed, or went wrong: what is finished is kept, and the result is the same."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from checkpoint_folders import CONFIG, content, write_folder

from palette_core import KMeansPalettizerConfig, load_checkpoint, palettize_checkpoint
from palette_core._common.locks import lock
from palette_core.errors import CheckpointError
from palette_core.streaming import parts, running

WORK = ".palette-unfinished"


class StopError(Exception):
    """What a test raises in the middle."""


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> list:
    """Let the engine fail after some weights; returns the names of those it works on."""
    real, seen = running.palettize_tensor, []

    def palettize_tensor(task: parts.Task) -> parts.Task:
        if len(seen) >= count:
            raise error or StopError
        seen.append(task.span.name)
        return real(task)

    monkeypatch.setattr(running, "palettize_tensor", palettize_tensor)
    return seen


def stopped_after(count: int, src: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Palettize some weights of a checkpoint, and no more."""
    with monkeypatch.context() as patched:
        stop_after(count, patched)
        with pytest.raises(StopError):
            palettize_checkpoint(src, CONFIG, out)


def reference(tmp_path: Path) -> dict[str, bytes]:
    write_folder(tmp_path / "src")
    palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "whole")
    return content(tmp_path / "whole")


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_what_is_finished_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    whole = reference(tmp_path)
    stopped_after(count, tmp_path / "src", tmp_path / "out", monkeypatch)
    with pytest.raises(CheckpointError, match="not finished"):
        load_checkpoint(tmp_path / "out", torch.nn.Linear(2, 2))
    seen = stop_after(100, monkeypatch)
    palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "out")
    assert len(seen) == 6 - count
    assert content(tmp_path / "out") == whole


def test_a_finished_folder_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reference(tmp_path)
    stop_after(0, monkeypatch)
    report = palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "whole")
    assert len(report.tensors) == 6
    assert content(tmp_path / "whole") == whole


@pytest.mark.parametrize("finished", [True, False])
def test_another_config_or_source_is_refused_by_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    write_folder(tmp_path / "src")
    if finished:
        palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "out")
    else:
        stopped_after(2, tmp_path / "src", tmp_path / "out", monkeypatch)
    other = KMeansPalettizerConfig.presets.w6()
    with pytest.raises(CheckpointError, match=r"n_bits was 4 and is 6"):
        palettize_checkpoint(tmp_path / "src", other, tmp_path / "out")
    write_folder(tmp_path / "src", layers=4)
    with pytest.raises(CheckpointError, match=r"source\.model-00001-of-00002\.safetensors\.bytes"):
        palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "out")


def test_other_values_in_the_source_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "src")
    stopped_after(4, tmp_path / "src", tmp_path / "out", monkeypatch)
    write_folder(tmp_path / "src", seed=1)
    with pytest.raises(CheckpointError, match="has other values now"):
        palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "out")


def test_damaged_parts_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reference(tmp_path)
    stopped_after(1, tmp_path / "src", tmp_path / "out", monkeypatch)
    (part,) = (tmp_path / "out" / WORK).glob("0*.safetensors")
    part.write_bytes(part.read_bytes()[:-1] + b"\xff")
    palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "out")
    assert content(tmp_path / "out") == whole


def test_a_full_disk_says_that_the_rest_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reference(tmp_path)
    with monkeypatch.context() as patched:
        stop_after(2, patched, OSError(errno.ENOSPC, "No space left on device", "x"))
        with pytest.raises(OSError, match="what is finished is kept"):
            palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "out")
    palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "out")
    assert content(tmp_path / "out") == whole


def test_folders_of_others_and_of_running_runs_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "src")
    (tmp_path / "out").mkdir()
    held = lock(tmp_path / "out")
    assert held is not None
    with pytest.raises(CheckpointError, match="another run writes in"):
        palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "out")
    held.release()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds files already"):
        palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "out")
    with pytest.raises(CheckpointError, match="the folder of the source"):
        palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "src" / "out")
    with pytest.raises(FileNotFoundError):
        palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "nowhere" / "out")
