"""The kind *command*: something that ``palette`` does, beside what it does by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from palette_core.plugins.entries import PluginEntry
from palette_core.plugins.markers import hookspec

PALETTES_OWN = frozenset(
    {
        "allocate",
        "calibrate",
        "compare",
        "demo",
        "export",
        "inspect",
        "new-plugin",
        "palettize",
        "palettize-checkpoint",
        "plan",
        "plugins",
        "report",
        "sweep",
        "validate",
        "verify",
    }
)
"""Names of the commands that ``palette`` has by itself, which no plug-in may claim."""


class Command(ABC):
    """A command of ``palette``, which reads its arguments itself."""

    @abstractmethod
    def run(self, arguments: Sequence[str]) -> int | None:
        """Do the work.

        Args:
            arguments: what stands after the command's name. ``--help`` is the command's to answer.

        Returns:
            The exit code; None means 0. A ``SystemExit``, as `argparse` raises, does as well.

        Raises:
            PaletteError: what the user did wrong; the message is shown in one line.
        """


@dataclass(frozen=True, kw_only=True)
class CommandEntry(PluginEntry):
    """A command: ``palette NAME``, shown with its summary by ``palette --help``.

    Attributes:
        factory: makes the command; import heavy modules inside it. There are no options.
    """

    takes_options: ClassVar[bool] = False

    factory: Callable[[Any], Command]


@hookspec
def palette_core_commands() -> Iterable[CommandEntry]:
    """Return the commands that this distribution adds to ``palette``.

    Example::

        import argparse

        from palette_core.plugins import INTERFACE_VERSION, Command, CommandEntry, hookimpl


        class Greet(Command):
            '''Greets somebody.'''

            def run(self, arguments):
                parser = argparse.ArgumentParser("palette greet", description="Greet somebody.")
                parser.add_argument("name")
                print(f"Hello {parser.parse_args(arguments).name}")


        @hookimpl
        def palette_core_commands():
            return [
                CommandEntry(
                    name="greet",
                    summary="greet somebody",
                    interface=INTERFACE_VERSION,
                    factory=lambda options: Greet(),
                )
            ]
    """
    raise AssertionError("hook specifications are never called")
