"""The records by which plug-ins are registered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from palette_core.config.granularity import Granularity
from palette_core.config.spec import QuantizationSpec
from palette_core.plugins.backends import Backend
from palette_core.plugins.clustering import Clusterer, LutQuantizer
from palette_core.plugins.metrics import SensitivityMetric
from palette_core.plugins.training import TrainingStrategy

INTERFACE_VERSION = 1


class NoOptions(BaseModel):
    """The options of a plug-in that has none."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, kw_only=True)
class PluginEntry:
    """What every kind of plug-in declares.

    Attributes:
        name: what users write in a config; lower case, unique within its kind.
        summary: one line for ``palette plugins``.
        interface: the interface version the plug-in was written for (`INTERFACE_VERSION`).
        options: a frozen pydantic model with ``extra="forbid"``.
    """

    name: str
    summary: str
    interface: int
    options: type[BaseModel] = NoOptions


@dataclass(frozen=True, kw_only=True)
class ClustererEntry(PluginEntry):
    """A clustering algorithm.

    Attributes:
        factory: makes the clusterer from validated options; import heavy modules inside it.
        supports_scalar: takes points with one coordinate.
        supports_vector: takes points with several coordinates.
        supports_importance: honours ``ClusterProblem.importance`` for scalars.
        supports_vector_importance: honours elementwise importance of vectors; otherwise vectors
            get the documented sum over their elements, broadcast.
        needs_moments: requires ``ClusterProblem.moments``. Where there are none, the core takes
            the built-in k-means instead, with a warning.
        fits_quantized: honours ``ClusterProblem.lut_quantizer`` itself.
        keeps_zeros: honours ``ClusterProblem.zeros`` itself; for others the core makes one entry
            of each table zero afterwards.
        deterministic: the same problem gives the same codebook, bit for bit.
        supports_cuda: runs where the points live; otherwise the core moves them to the CPU.
        thread_safe: may fit several problems at a time, each in a thread. Worth saying for code
            that lets go of the interpreter's lock and starts no threads of its own there.
    """

    factory: Callable[[Any], Clusterer]
    supports_scalar: bool = True
    supports_vector: bool = False
    supports_importance: bool = False
    supports_vector_importance: bool = False
    needs_moments: bool = False
    fits_quantized: bool = False
    keeps_zeros: bool = False
    deterministic: bool = True
    supports_cuda: bool = False
    thread_safe: bool = False


@dataclass(frozen=True, kw_only=True)
class GranularityEntry(PluginEntry):
    """A granularity. ``name`` equals the ``type`` of ``model``, which is its options model too."""

    model: type[Granularity]

    def __post_init__(self) -> None:
        if self.options is NoOptions and isinstance(self.model, type):
            object.__setattr__(self, "options", self.model)


@dataclass(frozen=True, kw_only=True)
class LutQuantizerEntry(PluginEntry):
    """A LUT quantizer.

    Attributes:
        factory: makes the quantizer from the ``lut_qspec`` and validated options.
        dtypes: the LUT dtypes it can make.
        is_default: picked for its dtypes when ``lut_qspec.quantizer`` is None.
        error_bound: promised largest root mean square error of a table, relative to its largest
            magnitude; 1 promises no more than a table of zeros keeps.
        thread_safe: may be used by several threads at a time.
    """

    factory: Callable[[QuantizationSpec, Any], LutQuantizer]
    dtypes: tuple[torch.dtype, ...]
    is_default: bool = False
    error_bound: float = 1.0
    thread_safe: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingStrategyEntry(PluginEntry):
    """A training strategy.

    Attributes:
        factory: makes the strategy from validated options.
        trains_lut: the tables become parameters of the model, which the optimizer trains.
        moves_lut: the tables are what ``advance`` makes of them after each step.
    """

    factory: Callable[[Any], TrainingStrategy]
    trains_lut: bool = False
    moves_lut: bool = False

    def __post_init__(self) -> None:
        if self.trains_lut and self.moves_lut:
            raise ValueError(
                f"{self.name!r} declares both trains_lut and moves_lut; one of them moves a table"
            )


@dataclass(frozen=True, kw_only=True)
class ExportBackendEntry(PluginEntry):
    """An export backend.

    Attributes:
        factory: makes the backend from validated options; import heavy modules inside it.
        suffix: file name suffix of what it writes, with the dot.
        supports_mmap: works with weights that ``finalize(mmap_dir=…)`` keeps in files and maps
            into memory, without copying them all.
    """

    factory: Callable[[Any], Backend]
    suffix: str
    supports_mmap: bool = False


@dataclass(frozen=True, kw_only=True)
class SensitivityMetricEntry(PluginEntry):
    """A sensitivity metric.

    Attributes:
        factory: makes the metric from validated options.
        needs_squares: wants `Candidate.squares`.
        needs_moments: wants `Candidate.moments`.
        needs_outputs: wants `Candidate.outputs`, a run of the model for every candidate.
    """

    factory: Callable[[Any], SensitivityMetric]
    needs_squares: bool = False
    needs_moments: bool = False
    needs_outputs: bool = False
