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
from palette_core.input_moments import InputMoments as InputMoments  # noqa: PLC0414 - public here
from palette_core.layout import BlockLayout
from palette_core.palettized import Codebook, PalettizedTensor, QuantizedLut
from palette_core.spec import PalettizationSpec, QuantizationSpec

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
    """

    points: Tensor
    n_entries: int
    importance: Tensor | None = None
    moments: InputMoments | None = None
    lut_quantizer: LutQuantizer | None = None
    seed: int = 0
    resolution: int | None = None


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
    """What a palettized weight is while the model trains."""

    @abstractmethod
    def forward(self, weight: Tensor, palettized: PalettizedTensor, decoded: Tensor) -> Tensor:
        """Return the weight that the layer uses in training mode.

        Args:
            weight: the dense weight, a leaf that may require gradients.
            palettized: the palette found by clustering; its parts carry no gradient.
            decoded: ``palettized.decode()``, which the core keeps between calls; not to be
                written to.

        Returns:
            A tensor of the weight's shape and dtype, differentiable as the strategy sees fit.
        """


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
    def finalize(
        self, model: nn.Module, palettized: Mapping[str, PalettizedTensor], mmap_dir: Path | None
    ) -> nn.Module:
        """Replace palettized weights by the runtime's form, in place, and return the model.

        Args:
            model: a model whose weights already decode through ``palette_core::depalettize``,
                the dense originals freed. Most backends have nothing to add.
            palettized: the same weights by fully qualified name of their first owner.
            mmap_dir: where to keep the weights on disk; only given when the entry says
                ``supports_mmap``.
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
        deterministic: the same problem gives the same codebook, bit for bit.
        supports_cuda: runs where the points live; otherwise the core moves them to the CPU.
    """

    factory: Callable[[Any], Clusterer]
    supports_scalar: bool = True
    supports_vector: bool = False
    supports_importance: bool = False
    supports_vector_importance: bool = False
    needs_moments: bool = False
    fits_quantized: bool = False
    deterministic: bool = True
    supports_cuda: bool = False


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
    """

    factory: Callable[[QuantizationSpec, Any], LutQuantizer]
    dtypes: tuple[torch.dtype, ...]
    is_default: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingStrategyEntry(PluginEntry):
    """A training strategy."""

    factory: Callable[[Any], TrainingStrategy]


@dataclass(frozen=True, kw_only=True)
class ExportBackendEntry(PluginEntry):
    """An export backend.

    Attributes:
        factory: makes the backend from validated options; import heavy modules inside it.
        suffix: file name suffix of what it writes, with the dot.
        supports_mmap: accepts ``mmap_dir``.
    """

    factory: Callable[[Any], Backend]
    suffix: str
    supports_mmap: bool = False
