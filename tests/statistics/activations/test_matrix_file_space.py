"""Matrices in files: their space is reserved, and what a kill leaves is cleared away."""

import errno
import gc
import os

import pytest

from palette_core._common import files
from palette_core.statistics.activations.matrix_files import MatrixFiles


def test_files_have_their_space_and_go_with_their_tensors(tmp_path):
    matrices = MatrixFiles(tmp_path)
    matrix = matrices.zeros((300, 300), float)
    [folder] = tmp_path.iterdir()
    [file] = folder.iterdir()
    assert file.stat().st_blocks * 512 >= 300 * 300 * 8  # no sparse file, which may not fit later
    matrix += 1
    del matrix, matrices
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    matrices = MatrixFiles(tmp_path)
    with pytest.raises(OSError, match="no room for a matrix of 32 bytes: No space") as caught:
        matrices.zeros((2, 2), float)
    assert caught.value.filename == str(tmp_path)
    del matrices, caught
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_the_next_run_clears_away_what_a_kill_left(tmp_path, monkeypatch):
    stale = tmp_path / ".moments.palette-abcd1234"
    stale.mkdir()
    (stale / "00000.npy").write_text("matrix")
    monkeypatch.setattr(files, "_cleared", set())
    matrices = MatrixFiles(tmp_path)
    matrix = matrices.zeros((2, 2), float)
    assert not stale.exists()
    assert matrix.sum() == 0
