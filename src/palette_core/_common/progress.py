"""A progress bar for long work, shown where somebody watches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[str, int], None]


@contextlib.contextmanager
def progress_bar(title: str, total: int, *, show: bool | None = None) -> Iterator[Advance]:
    """Yield ``advance(what, amount)``; the bar goes to stderr.

    Args:
        title: shown in front.
        total: the amount at which the work is done.
        show: None shows the bar only on a terminal.
    """
    console = Console(stderr=True)
    show = sys.stderr.isatty() if show is None else show
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}"),
        console=console,
        disable=not show,
    )
    with bar:
        task = bar.add_task(title, total=total, what="")
        yield lambda what, amount: bar.update(task, advance=amount, what=what)
