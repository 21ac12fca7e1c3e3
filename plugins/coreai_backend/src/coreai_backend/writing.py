"""Write folders whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write a folder to; it takes its place on success.

    When the block fails, or is interrupted, what stood at ``path`` before still does.
    Two renames cannot be one: between them ``path`` is missing for a moment, and the former
    folder is put back if the second fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    fresh, former = work / f"fresh{path.suffix}", work / "former"
    try:
        yield fresh
        try:
            if path.exists() or path.is_symlink():
                path.rename(former)
            fresh.rename(path)
        except BaseException:
            if former.exists() and not path.exists():
                former.rename(path)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
