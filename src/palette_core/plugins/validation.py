"""Checks of what a plug-in's hooks return, before any of it reaches the catalog."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import BaseModel

from palette_core.errors import shortened
from palette_core.plugins.entries import INTERFACE_VERSION, PluginEntry
from palette_core.plugins.kinds import EntryT, PluginKind
from palette_core.version import __version__

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
_SUMMARY = 200  # characters


def collect_entries(hook: Callable[[], Any], kind: PluginKind[EntryT]) -> list[EntryT]:
    """Call one implementation of a hook, and check every record that it returns.

    Args:
        hook: the implementation.
        kind: the kind that it collects.

    Raises:
        TypeError: not a list, not such records, or written for another interface version.
        ValueError: a name that cannot be used, or one name twice.
        Exception: whatever the hook itself raises.
    """
    found, record = hook(), kind.record
    if not isinstance(found, Iterable):
        raise TypeError(
            f"{kind.hook} must return a list of {record.__name__} records, got {found!r}"
        )
    entries: dict[str, EntryT] = {}
    for entry in found:
        if type(entry) is not record:  # a subclass may answer otherwise each time it is asked
            raise TypeError(
                f"{kind.hook} must return {record.__name__} records, and none of a subclass, got "
                f"{shortened(repr(entry))}"
            )
        _check_record(entry, kind.hook)
        if entry.name in entries:
            raise ValueError(f"{kind.hook} returns two records named {entry.name!r}")
        entries[entry.name] = entry
    return list(entries.values())


def _check_record(entry: PluginEntry, hook: str) -> None:
    if entry.interface != INTERFACE_VERSION:
        theirs, ours = entry.interface, INTERFACE_VERSION
        raise TypeError(
            f"{entry.name!r} was written for interface version {theirs}; palette_core "
            f"{__version__} works with version {ours}; install a release of the plug-in for "
            f"version {ours}, or a palette_core for version {theirs}"
        )
    # Annotations of a dataclass are not enforced, so whatever the author wrote arrives here.
    name: object = entry.name
    if type(name) is not str or not _NAME.fullmatch(name):
        raise ValueError(
            f"{hook}: name {shortened(repr(name))} must be lower-case letters, digits, '_', '-' "
            "and '.', at most 100"
        )
    summary: object = entry.summary
    if (
        type(summary) is not str
        or not summary.strip()
        or not summary.isprintable()
        or len(summary) > _SUMMARY
    ):
        raise ValueError(
            f"{name!r} needs a summary of one printable line of at most {_SUMMARY} characters, got "
            f"{shortened(repr(summary))}"
        )
    _check_options(entry)
    entry.check()


def _check_options(entry: PluginEntry) -> None:
    options: object = entry.options
    model = isinstance(options, type) and issubclass(options, BaseModel)
    config = entry.options.model_config if model else {}
    if config.get("extra") != "forbid" or not config.get("frozen"):
        raise TypeError(
            f"options of {entry.name!r} must be a pydantic model class with "
            f'frozen=True and extra="forbid", got {entry.options!r}'
        )
    schema: object = entry.options.model_json_schema()  # raises where no config can hold a field
    if not isinstance(schema, dict):
        raise TypeError(f"options of {entry.name!r} have {shortened(repr(schema))} for a schema")
