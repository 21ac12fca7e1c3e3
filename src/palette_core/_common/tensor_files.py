"""Files of tensors, whose failures to write are the OSErrors that they are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file as _save_file
from torch import Tensor

_SYSTEM_ERROR = re.compile(r"\(os error (?P<number>\d+)\)")


def save_file(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write contiguous CPU tensors.

    Raises:
        OSError: the disk is full, or the file cannot be written for another reason of the system.
    """
    try:
        _save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        found = _SYSTEM_ERROR.search(str(error))
        if found is None:
            raise
        number = int(found["number"])
        raise OSError(number, os.strerror(number), str(path)) from error


def torch_save(value: object, path: Path) -> None:
    """Write what ``torch.save`` writes.

    Raises:
        OSError: the disk is full, or the file cannot be written for another reason of the system.
    """
    with path.open("wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # of closing the archive, after the error that matters
            cause = error.__context__
            if isinstance(cause, OSError):
                raise OSError(cause.errno, cause.strerror, str(path)) from error
            raise
