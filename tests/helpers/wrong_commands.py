"""Commands that break one sentence of the contract each."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

from palette_core.plugins import Command, CommandEntry

Run = Callable[[Sequence[str]], "int | None"]


def right(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("palette wrong", description="Print a name.")
    parser.add_argument("--name", default="nobody")
    print(parser.parse_args(arguments).name)
    return 0


def silent(arguments: Sequence[str]) -> None:
    if "--help" not in arguments:
        right(arguments)


def careless(arguments: Sequence[str]) -> int | None:
    return right(arguments) if "--help" in arguments else None


def command(run: Run) -> CommandEntry:
    class Wrong(Command):
        def run(self, arguments: Sequence[str]) -> int | None:
            return run(arguments)

    return CommandEntry(name="wrong", summary="wrong", interface=1, factory=lambda _: Wrong())


def nameless(arguments: Sequence[str]) -> int | None:
    argparse.ArgumentParser("something", description="Do it.").parse_args(arguments)
    return None


def impatient(arguments: Sequence[str]) -> int:
    print(time.perf_counter_ns())
    return right(arguments)


COMMANDS = {
    "answers-help": command(silent),
    "names-itself": command(nameless),
    "refuses-unknown-options": command(careless),
    "repeatable": command(impatient),
}
