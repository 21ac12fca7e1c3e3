"""Matrices in files, which go when the last of them is no longer used."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor


@final
class MatrixFiles:
    """Places for matrices: in a fresh folder inside another one, or in memory.

    Every file is removed when its tensor is freed, the fresh folder when the last tensor and
    this object are, or when the interpreter ends.

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
            OSError: the file cannot be made.
        """
        if self._inside is None:
            return torch.from_numpy(np.zeros(shape, dtype))
        if self._own is None:
            self._own = Path(tempfile.mkdtemp(prefix="moments-", dir=self._inside))
            weakref.finalize(self, shutil.rmtree, self._own, ignore_errors=True)
        path = self._own / f"{next(self._numbers):05d}.npy"
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)  # type: ignore[no-untyped-call]
        # With this object as an argument, the folder stays as long as the array does.
        weakref.finalize(array, _remove, path, self)
        return torch.from_numpy(array)


def _remove(path: Path, files: MatrixFiles) -> None:
    del files
    with contextlib.suppress(OSError):
        path.unlink()
