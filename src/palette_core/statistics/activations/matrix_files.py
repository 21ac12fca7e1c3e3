"""Matrices in files, which go when the last of them is no longer used."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import weakref
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from palette_core._common.files import lasting_work_folder


@final
class MatrixFiles:
    """Places for matrices: in a fresh folder inside another one, or in memory.

    Every file is removed when its tensor is freed, the fresh folder when the last tensor and
    this object are, or when the interpreter ends; after a kill, by the next run that uses the
    folder. The disk's space is reserved: what does not fit is an error, not a crash later.

    Args:
        folder: an existing folder; None keeps matrices in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._inside = folder
        self._own: Path | None = None
        self._numbers = itertools.count()

    def zeros(self, shape: tuple[int, ...], dtype: type) -> Tensor:
        """Return a tensor of zeros in a place of its own.

        Raises:
            OSError: the file cannot be made, or the disk is full.
        """
        if self._inside is None:
            return torch.from_numpy(np.zeros(shape, dtype))
        if self._own is None:
            self._own, release = lasting_work_folder(self._inside, "moments")
            weakref.finalize(self, release)
        path = self._own / f"{next(self._numbers):05d}.npy"
        try:
            array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)  # type: ignore[no-untyped-call]
            _reserve(path)
        except OSError as error:
            _remove(path, self)
            size = math.prod(shape) * np.dtype(dtype).itemsize
            reason = f"no room for a matrix of {size:,} bytes: {error.strerror}"
            raise OSError(error.errno, reason, str(self._inside)) from error
        # With this object as an argument, the folder stays as long as the array does.
        weakref.finalize(array, _remove, path, self)
        return torch.from_numpy(array)


def _reserve(path: Path) -> None:
    """Give a file all of its space on the disk; touching a page without any ends the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _remove(path: Path, files: MatrixFiles) -> None:
    del files
    with contextlib.suppress(OSError):
        path.unlink()
