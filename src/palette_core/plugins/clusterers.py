"""The kind *clusterer*: an algorithm that turns points into a table and codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from palette_core.plugins import types
from palette_core.plugins.entries import PluginEntry
from palette_core.plugins.markers import hookspec


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
        scales: ``[B, N, D]`` float32, not negative: the factor of each point. The weight, which
            ``moments`` are for, is the points times these. None means ones.
    """

    points: types.Tensor
    n_entries: int
    importance: types.Tensor | None = None
    moments: types.InputMoments | None = None
    lut_quantizer: types.LutQuantizer | None = None
    seed: int = 0
    resolution: int | None = None
    zeros: types.Tensor | None = None
    scales: types.Tensor | None = None


class Clusterer(ABC):
    """Turns points into a codebook."""

    @abstractmethod
    def fit(self, problem: ClusterProblem) -> types.Codebook:
        """Cluster every block.

        Returns:
            ``lut`` ``[B, K, D]`` in float32 or wider (the core casts it once), on the device of
            the points; ``codes`` ``[B, N]`` uint8 below K.
        """


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
            the default algorithm for the points instead, with a warning.
        damping: for algorithms with moments: what one adds to their diagonal, as a share of its
            mean, by its validated options. None, also as the answer, is `InputMoments.damping`.
        vector_options: for algorithms of vectors: the options that a module's
            ``vector_kmeans_config`` asks for. None refuses configs that have one.
        default_for_scalars: picked for points with one coordinate where a config names no
            algorithm.
        default_for_vectors: the same for points with several.
        fits_quantized: honours ``ClusterProblem.lut_quantizer`` itself.
        keeps_zeros: honours ``ClusterProblem.zeros`` itself; for others the core makes one entry
            of each table zero afterwards.
        deterministic: the same problem gives the same codebook, bit for bit.
        supports_cuda: runs where the points live; otherwise the core moves them to the CPU.
        warm_up: begins what must be done once before a clusterer is of use, such as to compile,
            beside the loading and tracing of a model; returns at once, and may be called often.
        thread_safe: may fit several problems at a time, each in a thread. Worth saying for code
            that lets go of the interpreter's lock, starts no threads of its own there, and
            changes no setting of the process.
    """

    factory: Callable[[Any], Clusterer]
    supports_scalar: bool = True
    supports_vector: bool = False
    supports_importance: bool = False
    supports_vector_importance: bool = False
    needs_moments: bool = False
    damping: Callable[[Any], float | None] | None = None
    vector_options: Callable[[types.VectorKMeansConfig], Mapping[str, Any]] | None = None
    default_for_scalars: bool = False
    default_for_vectors: bool = False
    fits_quantized: bool = False
    keeps_zeros: bool = False
    deterministic: bool = True
    supports_cuda: bool = False
    thread_safe: bool = False
    warm_up: Callable[[], None] | None = None

    def claims(self) -> frozenset[str]:
        """Return the name, and the points that it is the default for."""
        default = {"scalars": self.default_for_scalars, "vectors": self.default_for_vectors}
        points = [points for points, declared in default.items() if declared]
        return super().claims() | {f"to be the default for {each}" for each in points}


@hookspec
def palette_core_clusterers() -> Iterable[ClustererEntry]:
    """Return the clustering algorithms that this distribution provides.

    Example::

        from palette_core.plugins import INTERFACE_VERSION, Clusterer, ClustererEntry, hookimpl


        class EvenSteps(Clusterer):
            '''Entries evenly spread over the range of each block.'''

            def fit(self, problem):
                import torch

                from palette_core.tensors import Codebook, assign

                low, high = problem.points.aminmax(dim=1, keepdim=True)
                steps = torch.linspace(0, 1, problem.n_entries, dtype=torch.float64)
                lut = low + steps[:, None].to(low.device) * (high - low).double()
                return Codebook(lut, assign(problem.points, lut))


        @hookimpl
        def palette_core_clusterers():
            return [
                ClustererEntry(
                    name="even_steps",
                    summary="entries evenly spread over the range",
                    interface=INTERFACE_VERSION,
                    factory=lambda options: EvenSteps(),
                )
            ]
    """
    raise AssertionError("hook specifications are never called")
