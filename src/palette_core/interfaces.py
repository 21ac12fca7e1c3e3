"""What a plug-in implements, and the records by which it is registered.

A plug-in hands the core *entries*: small frozen records with a name, a summary, an options model
and a factory. The core validates the user's options against the model, calls the factory with
them, and uses the object it gets through one of the abstract classes below. Weights never pass
through a hook.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from palette_core.granularity import Granularity, Shape
from palette_core.input_moments import InputMoments as InputMoments  # noqa: PLC0414 - public
from palette_core.layout import BlockLayout
from palette_core.palettized import Codebook, PalettizedTensor, QuantizedLut
from palette_core.spec import PalettizationSpec, QuantizationSpec
from palette_core.training_problem import TrainingProblem

INTERFACE_VERSION = 1


class NoOptions(BaseModel):
    """The options of a plug-in that has none."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# --- clustering ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClusterProblem:
    """Everything a clusterer may look at. Nothing in it may be written to.

    Attributes:
        points: ``[B, N, D]`` floating: B independent blocks of N points; never NaN or infinite.
        n_entries: K, entries per LUT, ``2 ** n_bits``.
        importance: ``[B, N, D]`` float32, non-negative, elementwise; None means ones.
        moments: second moments of the layer's input, usable ones, for algorithms that declare
            the need.
        lut_quantizer: how the LUT will be stored; an algorithm that declares ``fits_quantized``
            returns a codebook with ``quantized`` set, for others the core refines the result.
        seed: derived from (config seed, tensor name); the only source of randomness. Block b
            must use only (seed, b), so that blocks can be clustered in any batches.
        resolution: decimal places to which boundaries between float16-rounded values may be
            searched (fast mode); None asks for the exact optimum. Centroids are means of, and
            assignments are nearest to, the points themselves in either case.
        zeros: ``[B, N]`` bool, points that stand for pruned weights, for algorithms that declare
            ``keeps_zeros``: each must decode to exactly zero, whatever its value here (it may
            differ from zero where the moments have a target). One entry of every table is then
            zero, also where no point is. None means no such demand.
    """

    points: Tensor
    n_entries: int
    importance: Tensor | None = None
    moments: InputMoments | None = None
    lut_quantizer: LutQuantizer | None = None
    seed: int = 0
    resolution: int | None = None
    zeros: Tensor | None = None


class Clusterer(ABC):
    """Turns points into a codebook."""

    @abstractmethod
    def fit(self, problem: ClusterProblem) -> Codebook:
        """Cluster every block.

        Returns:
            ``lut`` ``[B, K, D]`` in float32 or wider (the core casts it once), on the device of
            the points; ``codes`` ``[B, N]`` uint8 below K.
        """


class LutQuantizer(ABC):
    """Maps LUT entries to integers or 8-bit floats with one scale per LUT."""

    @abstractmethod
    def quantize(self, lut: Tensor) -> QuantizedLut:
        """Quantize ``[B, K, D]`` floating entries; scale and zero point are ``[B, 1, 1]``."""


# --- training -----------------------------------------------------------------------------------


class TrainingStrategy(ABC):
    """What a palettized weight is while the model trains.

    A strategy keeps no state of its own: all that it may depend on, the tables and the count of
    steps included, is in the problem, and in the model's ``state_dict``. So training resumes where
    it stopped, a forward pass can be repeated (gradient checkpointing), and ranks that hold equal
    weights agree.
    """

    @abstractmethod
    def forward(self, problem: TrainingProblem) -> Tensor:
        """Return the weight that the layer uses in training mode.

        Called with autocast off. The result has the weight's shape and dtype, is finite, and
        differentiable as the strategy sees fit.
        """

    def harden(self, problem: TrainingProblem) -> Tensor | None:
        """Return the assignment that evaluation and `finalize` use, ``[B, N]`` uint8.

        Its entries are ``problem.as_stored(problem.lut)``. None, the default, keeps the present
        assignment. Called without gradients, once anything has been trained, and any number of
        times: the same weight and tables must give the same assignment.
        """
        del problem
        return None

    def advance(self, problem: TrainingProblem) -> Tensor | None:
        """Return the tables from which the next step starts, ``[B, K, D]`` floating.

        Called without gradients after every training step, for entries that declare
        ``moves_lut``. None, the default, leaves them as they are.
        """
        del problem
        return None


# --- export -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """Why a backend cannot take a tensor, and what it could take instead."""

    reason: str
    instead: PalettizationSpec | None = None


@dataclass(frozen=True)
class TensorFacts:
    """What planning knows about a tensor; enough to decide, and made without a live module.

    Attributes:
        name: fully qualified name of the first owner.
        shape: shape of the weight.
        dtype: dtype of the weight.
        op_type: functional name of the operation that consumes it (``"linear"``), or None.
        layout: the blocks that the spec's granularity makes of it.
        spec: the resolved spec.
    """

    name: str
    shape: Shape
    dtype: torch.dtype
    op_type: str | None
    layout: BlockLayout
    spec: PalettizationSpec


class Backend(ABC):
    """Turns a prepared model into what one runtime loads."""

    @abstractmethod
    def refuses(self, facts: TensorFacts) -> Refusal | None:
        """Say in planning whether this tensor cannot be exported; None means it can."""

    @abstractmethod
    def finalize(self, model: nn.Module, palettized: Mapping[str, PalettizedTensor]) -> nn.Module:
        """Replace palettized weights by the runtime's form, in place, and return the model.

        Args:
            model: a model whose weights already decode through ``palette_core::depalettize``,
                the dense originals freed. Most backends have nothing to add.
            palettized: the same weights by fully qualified name of their first owner; each is
                unpacked when it is looked up.
        """

    @abstractmethod
    def export(
        self,
        model: nn.Module,
        example_inputs: Sequence[Any] | Mapping[str, Any] | None,
        path: Path,
        dynamic_shapes: Any = None,
    ) -> Path:
        """Write a finalized model to ``path`` (or as the runtime names it) and return the path."""


# --- bits budget --------------------------------------------------------------------------------

ModelOutputs = Sequence[Sequence[Tensor]]
"""Floating tensors that a model returns, by calibration batch."""


@dataclass(frozen=True)
class Candidate:
    """One way to palettize one weight, for a metric to judge. Nothing in it may be written to.

    Attributes:
        name: fully qualified name of the weight's first owner.
        weight: the dense weight.
        decoded: what would stand for it, of the same shape and dtype.
        squares: float32 of the weight's shape: mean squared gradients of the loss; given to
            metrics that declare ``needs_squares``.
        moments: of the layer's input; given to metrics that declare ``needs_moments``.
        outputs: the model's outputs on calibration batches with a tensor in place of the weight,
            or with the weight itself for None; given to metrics that declare ``needs_outputs``.
    """

    name: str
    weight: Tensor
    decoded: Tensor
    squares: Tensor | None = None
    moments: InputMoments | None = None
    outputs: Callable[[Tensor | None], ModelOutputs] | None = None


class SensitivityMetric(ABC):
    """Predicts what a palettized weight costs the model, for the allocation of a bits budget."""

    @abstractmethod
    def loss(self, candidate: Candidate) -> float:
        """Return the predicted loss: finite, not negative, and 0 where nothing changes.

        Losses of different weights are added, so they need a common unit.
        """


# --- entries ------------------------------------------------------------------------------------


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
