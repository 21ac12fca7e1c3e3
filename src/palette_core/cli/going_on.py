"""Work that the same command goes on with, after it was killed or has failed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from palette_core.cli.habits import is_quiet


@contextlib.contextmanager
def going_on_later(output: Path) -> Iterator[Path]:
    """Yield a folder for what is finished; removed at the end, and left after a failure."""
    folder = output.with_name(f".{output.name}.unfinished")
    try:
        yield folder
    except BaseException as stopped:
        with contextlib.suppress(OSError):  # it is not there
            if not any(folder.iterdir()):
                folder.rmdir()
            elif isinstance(stopped, KeyboardInterrupt) and not is_quiet():  # errors are one line
                told = f"palette: finished weights are in {folder}; the same command goes on there"
                Console(stderr=True, soft_wrap=True).print(told, markup=False, highlight=False)
        raise
    shutil.rmtree(folder, ignore_errors=True)
