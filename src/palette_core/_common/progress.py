"""A progress bar for long work, shown where somebody watches."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

_LOGGER = logging.getLogger("palette_core")
Advance = Callable[[str, int], None]


class _Rate(ProgressColumn):
    """Amounts in millions, and how many a second."""

    def __init__(self, unit: str) -> None:
        super().__init__(Column(no_wrap=True, overflow="ellipsis"))
        self._unit = unit

    def render(self, task: Task) -> Text:
        done, total = task.completed / 1e6, (task.total or 0) / 1e6
        rate = "" if task.speed is None else f", {task.speed / 1e6:,.1f} M/s"
        return Text(f"{done:,.1f}/{total:,.1f} M {self._unit}{rate}")


@contextlib.contextmanager
def progress_bar(
    title: str, total: int | None, *, show: bool | None = None, unit: str = ""
) -> Iterator[Advance]:
    """Yield ``advance(what, amount)``; the bar goes to stderr.

    Args:
        title: shown in front.
        total: the amount at which the work is done; None where nobody knows, and only the time
            gone by is shown.
        show: None shows the bar only on a terminal, and where warnings are logged.
        unit: of amounts that are large; how many a second are done is shown then.
    """
    if show is None:
        show = sys.stderr.isatty() and _LOGGER.isEnabledFor(logging.WARNING)
    if not show:
        yield lambda what, amount: None
        return
    amounts = [_Rate(unit) if unit else MofNCompleteColumn()] if total is not None else []
    left = [TimeRemainingColumn()] if total is not None else []
    bar = Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None, table_column=Column(min_width=4, max_width=40, ratio=1)),
        *amounts,
        TimeElapsedColumn(),
        *left,
        TextColumn(
            "{task.fields[what]}",
            table_column=Column(no_wrap=True, overflow="ellipsis", ratio=2),
        ),
        console=Console(stderr=True),
        expand=True,
    )
    with bar:
        task = bar.add_task(title, total=total, what="")
        yield lambda what, amount: bar.update(task, advance=amount, what=what)
