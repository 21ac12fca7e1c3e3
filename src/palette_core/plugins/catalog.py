"""Discovery of plug-ins: the catalog of everything that can be picked by name.

Built-ins come in through the same hooks as anybody's. Entry points are loaded one by one; one
that fails is quarantined with its error, and everything else works.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import EntryPoint
from typing import Any, Generic, TypeVar

import pluggy
from pydantic import BaseModel, ValidationError

from palette_core.config.granularity import set_granularity_resolver
from palette_core.errors import (
    DuplicatePluginError,
    MissingBackendError,
    PluginOptionsError,
    UnknownPluginError,
    did_you_mean,
)
from palette_core.plugins import (
    ClustererEntry,
    ExportBackendEntry,
    GranularityEntry,
    LutQuantizerEntry,
    PluginEntry,
    SensitivityMetricEntry,
    TrainingStrategyEntry,
    hookspecs,
)
from palette_core.plugins.validation import collect_entries

ENTRY_POINT_GROUP = hookspecs.PROJECT
CORE = "palette-core"

EntryT = TypeVar("EntryT", bound=PluginEntry)

# kind as users read it -> (hook, record type)
KINDS: dict[str, tuple[str, type[PluginEntry]]] = {
    "clusterer": ("palette_core_clusterers", ClustererEntry),
    "granularity": ("palette_core_granularities", GranularityEntry),
    "LUT quantizer": ("palette_core_lut_quantizers", LutQuantizerEntry),
    "training strategy": ("palette_core_training_strategies", TrainingStrategyEntry),
    "export backend": ("palette_core_export_backends", ExportBackendEntry),
    "sensitivity metric": ("palette_core_sensitivity_metrics", SensitivityMetricEntry),
}

# Backends that exist as distributions of this project, so a missing one can name its package.
KNOWN_BACKENDS = {
    "coreai": "palette-core-coreai",
    "coreml": "palette-core-coreml",
}


@dataclass(frozen=True)
class Distribution:
    """Where an entry comes from, and how many seconds loading it took."""

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


@dataclass(frozen=True)
class Quarantined:
    """A plug-in that could not be used, and why."""

    distribution: Distribution
    entry_point: str
    error: str


@dataclass(frozen=True)
class Shelf(Generic[EntryT]):
    """All entries of one kind."""

    kind: str
    items: tuple[Registered[EntryT], ...] = ()
    quarantined: tuple[Quarantined, ...] = ()

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
        """
        found = [item for item in self.items if item.entry.name == name]
        if len(found) == 1:
            return found[0]
        if found:
            claims = sorted(str(item.distribution) for item in found)
            others = sorted(str(i.distribution) for i in found if i.distribution.name != CORE)
            raise DuplicatePluginError(
                f"{self.kind} {name!r} is registered by {' and '.join(claims)}; "
                f"uninstall {' or '.join(others)}"
            )
        raise UnknownPluginError(self._unknown(name))

    def get(self, name: str) -> EntryT:
        """Return the entry registered under ``name``; raises as `find`."""
        return self.find(name).entry

    def _unknown(self, name: object) -> str:
        text = (
            f"no {self.kind} is named {name!r}; installed: {', '.join(self.names()) or 'none'}"
            f"{did_you_mean(name, self.names())}"
        )
        if self.quarantined:
            broken = "; ".join(f"{q.distribution}: {q.error}" for q in self.quarantined)
            text += f" (not usable: {broken})"
        return text


@dataclass(frozen=True)
class Catalog:
    """Every registered plug-in, by kind."""

    clusterers: Shelf[ClustererEntry]
    granularities: Shelf[GranularityEntry]
    lut_quantizers: Shelf[LutQuantizerEntry]
    training_strategies: Shelf[TrainingStrategyEntry]
    export_backends: Shelf[ExportBackendEntry]
    sensitivity_metrics: Shelf[SensitivityMetricEntry]
    quarantined: tuple[Quarantined, ...] = field(default=(), kw_only=True)

    def shelves(self) -> tuple[Shelf[Any], ...]:
        """Return one shelf per kind, in the order of `KINDS`."""
        return (
            self.clusterers,
            self.granularities,
            self.lut_quantizers,
            self.training_strategies,
            self.export_backends,
            self.sensitivity_metrics,
        )

    def backend(self, name: str) -> ExportBackendEntry:
        """Return the export backend ``name``.

        Raises:
            MissingBackendError: it is one of ours, but its distribution is not installed.
            UnknownPluginError: nobody knows it.
        """
        shelf = self.export_backends
        broken = [q for q in self.quarantined if q.distribution.name == KNOWN_BACKENDS.get(name)]
        if name in KNOWN_BACKENDS and name not in shelf.names() and not broken:
            raise MissingBackendError(
                f"export backend {name!r} needs the plug-in {KNOWN_BACKENDS[name]!r}: "
                f"pip install {KNOWN_BACKENDS[name]}; installed: {', '.join(shelf.names())}"
            )
        return shelf.get(name)


def validate_options(entry: PluginEntry, kind: str, options: dict[str, Any]) -> BaseModel:
    """Validate a user's options against the entry's options model.

    Raises:
        PluginOptionsError: naming the plug-in, the option, the value and the known options.
    """
    try:
        return entry.options.model_validate(options)
    except ValidationError as error:
        known = list(entry.options.model_fields)
        problems = []
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"]) or "options"
            text = f"{where}={item['input']!r}: {item['msg']}"
            if item["type"] == "extra_forbidden":
                text = f"unknown option {where!r}{did_you_mean(where, known)}"
            elif item["type"] == "missing":
                text = f"option {where!r} is required"
            problems.append(text)
        raise PluginOptionsError(
            f"{kind} {entry.name!r}: {'; '.join(problems)} (options: {', '.join(known) or 'none'})"
        ) from None
    # A validator of the plug-in's own that breaks must not look like an error of the core.
    except Exception as error:
        problem = f"checking its options failed with {type(error).__name__}: {error}"
        raise PluginOptionsError(f"{kind} {entry.name!r}: {problem}") from error


# --- discovery ----------------------------------------------------------------------------------


@dataclass
class _Discovery:
    manager: pluggy.PluginManager
    entries: dict[str, list[Registered[Any]]] = field(default_factory=lambda: defaultdict(list))
    quarantined: list[Quarantined] = field(default_factory=list)

    def add(self, plugin: object, distribution: Distribution, name: str) -> None:
        """Register one plug-in whole, or quarantine it whole."""
        try:
            self._check_hooks(plugin)
            # This checks the signatures of the hooks.
            self.manager.register(plugin, name=f"{distribution.name}:{name}")
            found = {kind: collect_entries(plugin, *how) for kind, how in KINDS.items()}
        # A plug-in may fail in any way at all, and must take nothing else down with it.
        except (Exception, SystemExit) as error:
            self.reject(distribution, name, error)
            return
        for kind, records in found.items():
            self.entries[kind] += [Registered(record, distribution) for record in records]

    def reject(self, distribution: Distribution, name: str, error: BaseException) -> None:
        text = f"{type(error).__name__}: {error}"
        self.quarantined.append(Quarantined(distribution, name, text))

    def _check_hooks(self, plugin: object) -> None:
        """Refuse hooks that nobody would ever call: misspelled, unmarked, or none at all."""
        known = [hook for hook, _ in KINDS.values()]
        marked = [n for n in dir(plugin) if self.manager.parse_hookimpl_opts(plugin, n) is not None]
        for name in marked:
            if name not in known:
                raise AttributeError(f"unknown hook {name!r}{did_you_mean(name, known)}")
        for name in known:
            if hasattr(plugin, name) and name not in marked:
                raise AttributeError(f"hook {name!r} is not decorated with @hookimpl")
        if not marked:
            raise AttributeError(f"no hook is implemented; hooks are {', '.join(known)}")


def discover() -> Catalog:
    """Load built-ins and every entry point, and return a fresh catalog."""
    from palette_core.builtins import hooks as builtin

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    found = _Discovery(manager)
    found.add(builtin, Distribution(CORE, importlib.metadata.version(CORE)), "builtin")
    for dist, point in _entry_points(found):
        _load_entry_point(found, dist, point)
    quarantined = tuple(found.quarantined)
    return Catalog(
        *(Shelf[Any](kind, tuple(found.entries[kind]), quarantined) for kind in KINDS),
        quarantined=quarantined,
    )


def _entry_points(found: _Discovery) -> list[tuple[Distribution, EntryPoint]]:
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
    return sorted(points, key=lambda item: (item[0].name, item[1].name))


def _load_entry_point(found: _Discovery, dist: Distribution, point: EntryPoint) -> None:
    start = time.perf_counter()
    try:
        plugin = point.load()
    # SystemExit included: an import that exits must not end the user's program.
    except (Exception, SystemExit) as error:
        found.reject(replace(dist, seconds=time.perf_counter() - start), point.name, error)
        return
    dist = replace(dist, seconds=time.perf_counter() - start)
    found.add(plugin, dist, point.name)


@lru_cache(maxsize=1)
def get_catalog() -> Catalog:
    """Return the catalog of this process, discovered on first use."""
    return discover()


set_granularity_resolver(lambda name: get_catalog().granularities.get(name).model)
