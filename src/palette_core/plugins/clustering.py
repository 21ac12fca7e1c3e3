"""What algorithms that find tables implement: clusterers and LUT quantizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from palette_core.tensors.moments import InputMoments
from palette_core.tensors.palettized import Codebook, QuantizedLut


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
