"""Writes the reference of the command line from the commands themselves.

MkDocs runs this file as a hook; ``python docs/gen/commands.py`` prints the same text.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_type_hints

from typer.models import ArgumentInfo

from palette_core.cli import app as program
from palette_core.cli import habits

MARKER = "<!-- every command -->"
_WORDS = {"str": "TEXT", "Path": "PATH", "int": "INTEGER", "float": "NUMBER"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs hook: put the commands where a page asks for them."""
    return markdown.replace(MARKER, render()) if MARKER in markdown else markdown


def render() -> str:
    """Return what all commands take, and a section for each that comes along."""
    shared = [*parameters(program._options), *parameters(habits._options)]
    parts = [f"## For all commands\n\n{table(shared)}"]
    for command in program.app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        parts.append(f"## palette {name}\n\n{section(name, command.callback)}")
    return "\n\n".join(parts) + "\n"


def parameters(function: Callable[..., Any]) -> list[dict[str, str]]:
    """Return what a command takes: names, how they are written, default, meaning.

    Raises:
        ValueError: a parameter says nothing about itself.
    """
    hints = get_type_hints(function, include_extras=True)
    found = []
    for parameter in inspect.signature(function).parameters.values():
        kind, about = get_args(hints[parameter.name])
        if not about.help:
            raise ValueError(f"{parameter.name} of {function.__qualname__} has no help")
        required = parameter.default is inspect.Parameter.empty
        written = list(_written(parameter.name, kind, about))
        first = written[0] if required or not written[0].isupper() else f"[{written[0]}]"
        usage = first if required or isinstance(about, ArgumentInfo) else ""
        found.append(
            {
                "names": ", ".join(f"`{name}`" for name in written),
                "usage": usage,
                "default": "required" if required else _default(parameter.default),
                "meaning": about.help,
            }
        )
    return found


def section(name: str, function: Callable[..., Any]) -> str:
    """Return usage, help and parameters of a command."""
    taken = parameters(function)
    usage = [each["usage"] for each in taken if each["usage"]]
    text = " ".join(["palette", name, *usage, "[OPTIONS]"])
    about = inspect.getdoc(function)
    return f"```text\n{text}\n```\n\n{about}\n\n{table(taken)}"


def table(taken: list[dict[str, str]]) -> str:
    """Return a row for each parameter."""
    rows = ["| parameter | default | meaning |", "| --- | --- | --- |"]
    for each in taken:
        cells = (each["names"], each["default"], each["meaning"])
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _written(name: str, kind: Any, about: Any) -> Iterator[str]:
    value = about.metavar or _value(kind)
    if isinstance(about, ArgumentInfo):
        yield about.metavar or name.upper()
        return
    takes = "" if kind is bool or about.count else f" {value}"
    # Inside Annotated, Typer keeps the first declaration as if it were a default.
    given = [each for each in (about.default, *(about.param_decls or ())) if isinstance(each, str)]
    for form in given or (f"--{name.replace('_', '-')}",):
        yield f"{form}{takes}"


def _value(kind: Any) -> str:
    words = re.findall(
        r"\w+", getattr(kind, "__name__", "") if isinstance(kind, type) else str(kind)
    )
    return next((_WORDS[word] for word in words if word in _WORDS), "VALUE")


def _default(value: Any) -> str:
    return "" if value in (None, False, 0) else f"`{value}`"


if __name__ == "__main__":
    print(render())
