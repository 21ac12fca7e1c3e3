"""Discovery: every installed plug-in is loaded by itself, and what fails is set aside.

pluggy registers the plug-ins, validates their hooks against the specifications, and lists the
implementations; each is called by itself, so that one that fails takes nothing else down.
"""

from __future__ import annotations

import importlib.metadata
import re
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint
from typing import Any, TypeVar

import pluggy

from palette_core._common.interrupts import only_signals_interrupt
from palette_core._common.warned import warn
from palette_core.errors import (
    DuplicatePluginError,
    did_you_mean,
    named_text_of,
    shortened,
)
from palette_core.plugins.blocking import BlockList
from palette_core.plugins.guards import settings_kept
from palette_core.plugins.kinds import KINDS, PluginKind
from palette_core.plugins.markers import PROJECT
from palette_core.plugins.registries import CORE, Blocked, Distribution, Quarantined, Registered
from palette_core.plugins.validation import collect_entries

ENTRY_POINT_GROUP = PROJECT

# What packaging allows in names and versions; more would end up on terminals.
_DISTRIBUTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,99}")

_T = TypeVar("_T")


@dataclass
class Discovery:
    """Finds so far.

    Attributes:
        entries: by kind, in the order in which they were found.
        quarantined: what could not be used.
        blocked: what was found and is on the block list.
        block: the block list.
    """

    entries: dict[PluginKind[Any], list[Registered[Any]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    quarantined: list[Quarantined] = field(default_factory=list)
    blocked: list[Blocked] = field(default_factory=list)
    block: BlockList = field(default_factory=BlockList.read)
    _manager: pluggy.PluginManager = field(init=False)

    def __post_init__(self) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        hooks = {kind.hook: kind.hookspec for kind in KINDS}
        self._manager.add_hookspecs(type("Hooks", (), hooks))

    def load(self, dist: Distribution, point: EntryPoint) -> None:
        """Load one entry point, and register what it names, unless it is blocked."""
        name = _full_name(dist, point.name)
        if self.block.has_distribution(dist.name):
            self._manager.set_blocked(name)
        if self._manager.is_blocked(name):
            self.blocked.append(Blocked(dist.name, dist))
            return
        start = time.perf_counter()
        plugin, error = _tried(point.load)
        dist = replace(dist, seconds=time.perf_counter() - start)
        if error is not None:
            self.reject(dist, point.name, error)
        else:
            self.add(plugin, dist, point.name)

    def add(self, plugin: object, distribution: Distribution, name: str) -> None:
        """Register one plug-in whole, or quarantine it whole."""
        known = _full_name(distribution, name)
        found, error = _tried(lambda: self._records_of(plugin, known))
        if error is not None:
            if self._manager.has_plugin(known):
                self._manager.unregister(name=known)
            self.reject(distribution, name, error)
        for kind, records in (found or {}).items():
            for record in records:
                item = f"{kind.slug}:{record.name}"
                if item in self.block.entries:
                    self.blocked.append(Blocked(item, distribution))
                else:
                    self.entries[kind].append(Registered(record, distribution))

    def settle_claims(self) -> None:
        """Set aside what claims the name, the suffix or the like of a built-in plug-in."""
        for kind, items in self.entries.items():
            built_in = [item.entry for item in items if item.distribution.name == CORE]
            taken = {claim for entry in built_in for claim in entry.claims()}
            taken |= {f"the name {name!r}" for name in kind.reserved}
            for item in list(items):
                wrong = sorted(taken & item.entry.claims())
                if wrong and item.distribution.name != CORE:
                    items.remove(item)
                    text = f"{kind} {item.entry.name!r} claims {', '.join(wrong)}"
                    reason = DuplicatePluginError(f"{text}, as a built-in one does")
                    self.reject(item.distribution, f"{kind.slug}:{item.entry.name}", reason)

    def warn_of_idle_blocks(self) -> None:
        """Warn of what was to be blocked and is not there: it may be a slip of the pen."""
        wanted = self.block.distributions | self.block.entries
        found = {self.block.normal(each.item) for each in self.blocked}
        for item in sorted(wanted - found):
            what = "entry" if ":" in item else "distribution with plug-ins"
            warn(
                f"{item!r} was to be blocked, and no {what} of that name is installed; "
                "`palette plugins` lists what is",
                stacklevel=2,
            )

    def reject(self, distribution: Distribution, name: str, error: BaseException) -> None:
        """Set aside what cannot be used."""
        self.quarantined.append(Quarantined(distribution, name, named_text_of(error)))

    def _records_of(self, plugin: object, name: str) -> dict[PluginKind[Any], list[Any]]:
        self._manager.register(plugin, name=name)
        self._check_hooks(plugin)
        return {kind: self._collect(plugin, kind) for kind in KINDS}

    def _check_hooks(self, plugin: object) -> None:
        """Refuse hooks that nobody would ever call: misspelled, unmarked, or none at all."""
        known = [kind.hook for kind in KINDS]
        called = self._manager.get_hookcallers(plugin) or []
        for caller in called:
            if not caller.has_spec():
                hint = did_you_mean(caller.name, known)
                raise AttributeError(f"unknown hook {caller.name!r}{hint}")
        marked = {caller.name for caller in called}
        for name in known:
            if hasattr(plugin, name) and name not in marked:
                raise AttributeError(f"hook {name!r} is not decorated with @hookimpl")
        if not marked:
            raise AttributeError(f"no hook is implemented; hooks are {', '.join(known)}")

    def _collect(self, plugin: object, kind: PluginKind[Any]) -> list[Any]:
        implementations = getattr(self._manager.hook, kind.hook).get_hookimpls()
        own = [each.function for each in implementations if each.plugin is plugin]
        return [entry for hook in own for entry in collect_entries(hook, kind)]


def _tried(call: Callable[[], _T]) -> tuple[_T | None, BaseException | None]:
    """Return what a plug-in's code returns, or how it fails: in any way at all.

    It must not take anything else down: an import may exit, or panic in Rust. Ctrl-C interrupts.
    """
    with only_signals_interrupt(), settings_kept():
        try:
            return call(), None
        except BaseException as error:
            return None, error


def _full_name(distribution: Distribution, point: str) -> str:
    return f"{distribution.name}:{point}"


def find_plugins() -> Discovery:
    """Load every entry point of every installed distribution, the core's own first."""
    found = Discovery()
    for dist, point in _entry_points(found):
        found.load(dist, point)
    found.settle_claims()
    found.warn_of_idle_blocks()
    return found


def _distribution(name: str, version: str) -> Distribution:
    if not _DISTRIBUTION.fullmatch(name) or not _DISTRIBUTION.fullmatch(version):
        text = shortened(f"{name!r} {version!r}")
        raise ValueError(f"{text} is no name of a distribution with a version")
    return Distribution(name, version)


def _entry_points(found: Discovery) -> list[tuple[Distribution, EntryPoint]]:
    """Read one distribution after the other: one malformed file must not hide the rest."""
    points: list[tuple[Distribution, EntryPoint]] = []
    seen: set[str] = set()
    for dist in importlib.metadata.distributions():
        about = Distribution("unknown", "unknown")
        try:
            if f"[{ENTRY_POINT_GROUP}]" not in (dist.read_text("entry_points.txt") or ""):
                continue
            about = _distribution(dist.name or "unknown", dist.version or "unknown")
            # Of two with one name, Python imports the first on sys.path; so do we.
            first = importlib.metadata.distribution(about.name)
            if about.name not in seen and first.version == about.version:
                seen.add(about.name)
                points += [(about, p) for p in dist.entry_points.select(group=ENTRY_POINT_GROUP)]
        except Exception as error:
            found.reject(about, "entry_points.txt", error)
    return sorted(points, key=lambda item: (item[0].name != CORE, item[0].name, item[1].name))
