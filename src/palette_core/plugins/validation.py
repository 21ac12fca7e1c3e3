"""Checks of what a plug-in's hooks return, before any of it reaches the catalog."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from palette_core.config.granularity import Granularity
from palette_core.plugins import INTERFACE_VERSION, GranularityEntry, PluginEntry
from palette_core.version import __version__

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


def collect_entries(plugin: object, hook: str, record: type[PluginEntry]) -> list[PluginEntry]:
    """Call one hook, if the plug-in has it, and check every record that it returns.

    Args:
        plugin: a module or object with hook implementations.
        hook: name of the hook.
        record: the type of record that the hook collects.

    Raises:
        TypeError: not a list, not such records, or written for another interface version.
        ValueError: a name that cannot be used, or one name twice.
        Exception: whatever the hook itself raises.
    """
    found: Any = getattr(plugin, hook, tuple)()
    if not isinstance(found, Iterable):
        raise TypeError(f"{hook} must return a list of {record.__name__} records, got {found!r}")
    entries: dict[str, PluginEntry] = {}
    for entry in found:
        if not isinstance(entry, record):
            raise TypeError(f"{hook} must return {record.__name__} records, got {entry!r}")
        _check_record(entry, hook)
        if entry.name in entries:
            raise ValueError(f"{hook} returns two records named {entry.name!r}")
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
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{hook}: name {name!r} must be lower-case letters, digits, '_', '-' and '.'"
        )
    summary: object = entry.summary
    if not isinstance(summary, str) or not summary.strip() or "\n" in summary:
        raise ValueError(f"{name!r} needs a summary of one line, got {summary!r}")
    _check_options(entry)
    if isinstance(entry, GranularityEntry):
        _check_granularity(entry)
    elif not callable(factory := getattr(entry, "factory", None)):
        raise TypeError(f"factory of {entry.name!r} must be callable, got {factory!r}")


def _check_options(entry: PluginEntry) -> None:
    config = entry.options.model_config if _is_class(entry.options, BaseModel) else {}
    if config.get("extra") != "forbid" or not config.get("frozen"):
        raise TypeError(
            f"options of {entry.name!r} must be a pydantic model class with "
            f'frozen=True and extra="forbid", got {entry.options!r}'
        )
    entry.options.model_json_schema()  # raises where a field cannot be written in a config


def _check_granularity(entry: GranularityEntry) -> None:
    usable = _is_class(entry.model, Granularity) and not inspect.isabstract(entry.model)
    if not usable or entry.model.model_fields["type"].default != entry.name:
        raise TypeError(
            f"model of {entry.name!r} must be a Granularity class that defines block_shape "
            f"and a field 'type' that defaults to {entry.name!r}, got {entry.model!r}"
        )


def _is_class(value: object, base: type) -> bool:
    """Whether ``value`` is a subclass of ``base``; plug-ins put anything into a record."""
    return isinstance(value, type) and issubclass(value, base)
