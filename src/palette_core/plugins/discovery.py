"""Discovery: every installed plug-in is loaded by itself, and what fails is set aside.

pluggy registers the plug-ins, validates their hooks against the specifications, and lists the
implementations; each is called by itself, so that one that fails takes nothing else down.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint
from typing import Any

import pluggy

from palette_core.errors import did_you_mean
from palette_core.plugins.kinds import KINDS, PluginKind
from palette_core.plugins.markers import PROJECT
from palette_core.plugins.shelves import CORE, Distribution, Quarantined, Registered
from palette_core.plugins.validation import collect_entries

ENTRY_POINT_GROUP = PROJECT


@dataclass
class Discovery:
    """What has been found so far.

    Attributes:
        entries: by kind, in the order in which they were found.
        quarantined: what could not be used.
    """

    entries: dict[PluginKind[Any], list[Registered[Any]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    quarantined: list[Quarantined] = field(default_factory=list)
    _manager: pluggy.PluginManager = field(init=False)

    def __post_init__(self) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        hooks = {kind.hook: kind.hookspec for kind in KINDS}
        self._manager.add_hookspecs(type("Hooks", (), hooks))

    def load(self, dist: Distribution, point: EntryPoint) -> None:
        """Load one entry point, and register what it names."""
        start = time.perf_counter()
        try:
            plugin = point.load()
        # SystemExit included: an import that exits must not end the user's program.
        except (Exception, SystemExit) as error:
            self.reject(replace(dist, seconds=time.perf_counter() - start), point.name, error)
            return
        dist = replace(dist, seconds=time.perf_counter() - start)
        self.add(plugin, dist, point.name)

    def add(self, plugin: object, distribution: Distribution, name: str) -> None:
        """Register one plug-in whole, or quarantine it whole."""
        known = f"{distribution.name}:{name}"
        try:
            self._manager.register(plugin, name=known)
            self._check_hooks(plugin)
            found = {kind: self._collect(plugin, kind) for kind in KINDS}
        # A plug-in may fail in any way at all, and must take nothing else down with it.
        except (Exception, SystemExit) as error:
            if self._manager.has_plugin(known):
                self._manager.unregister(name=known)
            self.reject(distribution, name, error)
            return
        for kind, records in found.items():
            self.entries[kind] += [Registered(record, distribution) for record in records]

    def reject(self, distribution: Distribution, name: str, error: BaseException) -> None:
        """Set aside what cannot be used."""
        text = f"{type(error).__name__}: {error}"
        self.quarantined.append(Quarantined(distribution, name, text))

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


def find_plugins() -> Discovery:
    """Load every entry point of every installed distribution, the core's own first."""
    found = Discovery()
    for dist, point in _entry_points(found):
        found.load(dist, point)
    return found


def _entry_points(found: Discovery) -> list[tuple[Distribution, EntryPoint]]:
    """Read one distribution after the other: one malformed file must not hide the rest."""
    points: list[tuple[Distribution, EntryPoint]] = []
    seen: set[str] = set()
    for dist in importlib.metadata.distributions():
        about = Distribution("unknown", "unknown")
        try:
            if f"[{ENTRY_POINT_GROUP}]" not in (dist.read_text("entry_points.txt") or ""):
                continue
            about = Distribution(dist.name or "unknown", dist.version or "unknown")
            # Of two with one name, Python imports the first on sys.path; so do we.
            first = importlib.metadata.distribution(about.name)
            if about.name not in seen and first.version == about.version:
                seen.add(about.name)
                points += [(about, p) for p in dist.entry_points.select(group=ENTRY_POINT_GROUP)]
        except Exception as error:
            found.reject(about, "entry_points.txt", error)
    return sorted(points, key=lambda item: (item[0].name != CORE, item[0].name, item[1].name))
