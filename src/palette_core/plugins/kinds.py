"""The table of kinds: one row for everything that a plug-in can provide.

One more kind is one row here and one file beside this one, which holds its interface, its record
and its hook.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

from palette_core.errors import (
    AllocationError,
    BackendError,
    CheckpointError,
    ClusteringError,
    CommandError,
    OperationError,
    PaletteError,
    PlanError,
    TrainingError,
)
from palette_core.plugins import (
    backends,
    clusterers,
    commands,
    granularities,
    lut_quantizers,
    metrics,
    operations,
    stored_forms,
    training,
)
from palette_core.plugins.entries import PluginEntry

EntryT = TypeVar("EntryT", bound=PluginEntry)


@dataclass(frozen=True, eq=False)
class PluginKind(Generic[EntryT]):
    """One kind of plug-in.

    Attributes:
        slug: how it is written in commands, names of checks and block lists.
        title: how it is written in messages.
        hookspec: the hook by which plug-ins register theirs.
        record: what the hook returns.
        interface: the class that the work is done through; None where the record is all.
        error: what a failure of the plug-in's code becomes.
        reserved: names that belong to the core, though no plug-in registers them.
    """

    slug: str
    title: str
    hookspec: Callable[[], Iterable[EntryT]]
    record: type[EntryT]
    interface: type | None
    error: type[PaletteError]
    reserved: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.title

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Stay one object in copies of a catalog, and in other processes."""
        return kind_named, (self.slug,)

    @property
    def hook(self) -> str:
        """Name of the hook."""
        return str(getattr(self.hookspec, "__name__", self.hookspec))


CLUSTERER = PluginKind(
    "clusterer",
    "clusterer",
    clusterers.palette_core_clusterers,
    clusterers.ClustererEntry,
    clusterers.Clusterer,
    ClusteringError,
)
GRANULARITY = PluginKind(
    "granularity",
    "granularity",
    granularities.palette_core_granularities,
    granularities.GranularityEntry,
    granularities.Granularity,
    PlanError,
)
LUT_QUANTIZER = PluginKind(
    "lut-quantizer",
    "LUT quantizer",
    lut_quantizers.palette_core_lut_quantizers,
    lut_quantizers.LutQuantizerEntry,
    lut_quantizers.LutQuantizer,
    ClusteringError,
)
TRAINING_STRATEGY = PluginKind(
    "training",
    "training strategy",
    training.palette_core_training_strategies,
    training.TrainingStrategyEntry,
    training.TrainingStrategy,
    TrainingError,
)
EXPORT_BACKEND = PluginKind(
    "backend",
    "export backend",
    backends.palette_core_export_backends,
    backends.ExportBackendEntry,
    backends.Backend,
    BackendError,
)
SENSITIVITY_METRIC = PluginKind(
    "metric",
    "sensitivity metric",
    metrics.palette_core_sensitivity_metrics,
    metrics.SensitivityMetricEntry,
    metrics.SensitivityMetric,
    AllocationError,
)
OPERATION = PluginKind(
    "operation",
    "operation",
    operations.palette_core_operations,
    operations.OperationEntry,
    operations.Operation,
    OperationError,
)
STORED_FORM = PluginKind(
    "stored-form",
    "stored form",
    stored_forms.palette_core_stored_forms,
    stored_forms.StoredFormEntry,
    stored_forms.StoredForm,
    CheckpointError,
)

COMMAND = PluginKind(
    "command",
    "command",
    commands.palette_core_commands,
    commands.CommandEntry,
    commands.Command,
    CommandError,
    commands.PALETTES_OWN,
)

KINDS: tuple[PluginKind[Any], ...] = (
    CLUSTERER,
    GRANULARITY,
    LUT_QUANTIZER,
    TRAINING_STRATEGY,
    EXPORT_BACKEND,
    SENSITIVITY_METRIC,
    OPERATION,
    STORED_FORM,
    COMMAND,
)


def kind_of(entry: PluginEntry) -> PluginKind[Any]:
    """Return the kind whose records ``entry`` is one of."""
    record: Any = type(entry)
    return _kind_of_records(record)


@lru_cache
def _kind_of_records(record: type) -> PluginKind[Any]:
    return next(kind for kind in KINDS if issubclass(record, kind.record))


def kind_named(slug: str) -> PluginKind[Any]:
    """Return the kind of a slug."""
    return next(kind for kind in KINDS if kind.slug == slug)
