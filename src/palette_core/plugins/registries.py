"""Registries: entries by kind, where they come from, and what had to be set aside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

from palette_core.errors import (
    BlockedPluginError,
    DuplicatePluginError,
    UnknownPluginError,
    did_you_mean,
)
from palette_core.plugins.blocking import VARIABLE
from palette_core.plugins.entries import PluginEntry
from palette_core.plugins.kinds import PluginKind, kind_of

CORE = "palette-core"

EntryT = TypeVar("EntryT", bound=PluginEntry)


@dataclass(frozen=True)
class Distribution:
    """Distribution that an entry comes from, and the seconds that loading it took."""

    name: str
    version: str
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Registered(Generic[EntryT]):
    """An entry and the distribution that registers it."""

    entry: EntryT
    distribution: Distribution

    def __str__(self) -> str:
        return self._said

    @cached_property
    def _said(self) -> str:
        return f"{kind_of(self.entry)} {self.entry.name!r} ({self.distribution})"


@dataclass(frozen=True)
class Quarantined:
    """A plug-in that could not be used, and why."""

    distribution: Distribution
    entry_point: str
    error: str


@dataclass(frozen=True)
class Blocked:
    """Something that somebody wants left out: one entry, or all that an entry point would register.

    Attributes:
        item: as it is written in a block list, such as ``"clusterer:kmeans1d"``.
        distribution: where it comes from.
    """

    item: str
    distribution: Distribution


@dataclass(frozen=True)
class Registry(Generic[EntryT]):
    """All entries of one kind."""

    kind: PluginKind[EntryT]
    items: tuple[Registered[EntryT], ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    blocked: tuple[Blocked, ...] = ()

    def __iter__(self) -> Iterator[Registered[EntryT]]:
        return iter(self.items)

    def names(self) -> list[str]:
        """Return the registered names, sorted, each once."""
        return sorted({item.entry.name for item in self.items})

    def find(self, name: str) -> Registered[EntryT]:
        """Return what is registered under ``name``.

        Raises:
            UnknownPluginError: nothing is; the message lists what is and the nearest match.
            DuplicatePluginError: two distributions claim the name.
            BlockedPluginError: it is blocked.
        """
        given: object = name
        found = self._by_name.get(given, ()) if isinstance(given, str) else ()
        if found:
            return self.only(found, repr(name))
        if self.is_blocked(name):
            raise BlockedPluginError(f"{self.kind} {name!r} is blocked by --block or {VARIABLE}")
        raise UnknownPluginError(self._unknown(name))

    @cached_property
    def _by_name(self) -> Mapping[str, Sequence[Registered[EntryT]]]:
        found: dict[str, list[Registered[EntryT]]] = {}
        for item in self.items:
            found.setdefault(item.entry.name, []).append(item)
        return found

    def is_blocked(self, name: str) -> bool:
        """Return whether an entry of this name was found, and is on the block list."""
        return any(each.item == f"{self.kind.slug}:{name}" for each in self.blocked)

    def find_by(self, field: str, value: object) -> Registered[EntryT] | None:
        """Return the entry that has ``value`` in a field, if any.

        Raises:
            DuplicatePluginError: two distributions claim it.
        """
        found = [item for item in self.items if getattr(item.entry, field) == value]
        return self.only(found, f"for {field} {value!r}") if found else None

    def get(self, name: str) -> EntryT:
        """Return the entry registered under ``name``; raises as `find`."""
        return self.find(name).entry

    def only(self, found: Sequence[Registered[EntryT]], what: str) -> Registered[EntryT]:
        """Return the one entry that is found.

        Raises:
            DuplicatePluginError: there are several, of more than one distribution.
        """
        if len(found) == 1:
            return found[0]
        claims = sorted(str(item.distribution) for item in found)
        raise DuplicatePluginError(
            f"{self.kind} {what} is registered by {' and '.join(claims)}; "
            f"uninstall or block {' or '.join(claims)}"
        )

    def _unknown(self, name: object) -> str:
        return (
            f"no {self.kind} is named {name!r}; installed: {', '.join(self.names()) or 'none'}"
            f"{did_you_mean(name, self.names())}{self.left_out()}"
        )

    def left_out(self) -> str:
        """Return what is quarantined or blocked, in brackets, to end a sentence with."""
        text = ""
        if self.quarantined:
            broken = "; ".join(f"{q.distribution}: {q.error}" for q in self.quarantined)
            text += f" (not usable: {broken})"
        if self.blocked:
            text += f" (blocked: {', '.join(each.item for each in self.blocked)})"
        return text
