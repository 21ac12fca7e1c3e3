"""Write the two files of a model, both or neither."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

import openvino as ov

from openvino_backend.finishing import Converted
from palette_core.errors import BackendError


def write_model(converted: Converted, path: Path) -> None:
    """Write ``path`` and its ``.bin``, and replace an older pair once both are whole.

    The ``.xml`` goes first and comes last: at no moment does one stand beside a ``.bin`` that it
    was not written with.

    Raises:
        BackendError: OpenVINO cannot write the files; what stood there still does.
        OSError: they cannot be moved to their place; what stood there still does.
    """
    check_place(path)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    fresh = work / "fresh.xml"
    try:
        try:
            # Rounding to float16 is an option of this backend, and done before.
            ov.save_model(converted.model, fresh, compress_to_fp16=False)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO cannot write {path}: {error}") from error
        _take_place(fresh, path, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_place(path: Path) -> None:
    """Check that files can be written where they shall stand.

    Raises:
        BackendError: a folder stands there.
    """
    for place in (path, path.with_suffix(".bin")):
        if place.is_dir():
            raise BackendError(f"{place} is a folder; give the path of a file")


def _take_place(fresh: Path, path: Path, work: Path) -> None:
    """Move a pair of files to its place; the older pair comes back if that fails."""
    with contextlib.ExitStack() as undo:
        for suffix in (".xml", ".bin"):
            place, former = path.with_suffix(suffix), work / f"former{suffix}"
            if place.exists() or place.is_symlink():
                place.rename(former)
                undo.callback(former.rename, place)
        for suffix in (".bin", ".xml"):
            fresh.with_suffix(suffix).rename(path.with_suffix(suffix))
            undo.callback(path.with_suffix(suffix).unlink)
        undo.pop_all()
