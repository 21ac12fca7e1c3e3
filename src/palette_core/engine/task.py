"""A weight as a problem of its algorithm: points, what they count, zeros, and the codebook back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from palette_core.engine.exact import ExactBlocks
from palette_core.engine.sparsity import fit_nonzeros, with_room
from palette_core.errors import PlanError
from palette_core.planning import TensorPlan
from palette_core.plugins import ClustererEntry, ClusterProblem, InputMoments, LutQuantizer
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.checked.clusterers import fit_checked
from palette_core.plugins.checked.lut_quantizers import make_lut_quantizer
from palette_core.plugins.registries import Registered
from palette_core.tensors.codebook import Codebook
from palette_core.tensors.exact_tables import quantize_exactly
from palette_core.tensors.layout import BlockLayout
from palette_core.tensors.quantized_fit import quantize_codebook
from palette_core.tensors.scales import divide_by_scale, spread_scale
from palette_core.tensors.zeros import fill_points, keep_zeros


@dataclass(frozen=True)
class Task:
    """The problem of one weight, posed to its algorithm and solved."""

    plan: TensorPlan
    item: Registered[ClustererEntry]
    catalog: Catalog
    dtype: torch.dtype
    mask: Tensor | None = None  # the nonzeros, where zero gets an entry more than the spec says

    def fit(
        self,
        weight: Tensor,
        layout: BlockLayout,
        importance: Tensor | None = None,
        moments: InputMoments | None = None,
        zeros: Tensor | None = None,
        scale: Tensor | None = None,
        *,
        quantized: bool = True,
    ) -> Codebook:
        """Return tables and indices of a weight divided by a scale.

        Args:
            weight: what is to come near to, in the layout.
            layout: of the tables.
            importance: of the weight's shape; what an error of the divided weight counts.
            moments: for algorithms that need them.
            zeros: ``[B, N]`` points that are to stay zero.
            scale: the factors.
            quantized: False leaves the entries floats whatever the spec says.
        """
        plan, entry = self.plan, self.item.entry
        if importance is not None and not entry.supports_importance:
            raise PlanError(
                f"{plan.name}: algorithm {entry.name!r} does not take sensitivities; choose one "
                "that does, or prepare without sensitivity_path"
            )
        normal = weight if scale is None else divide_by_scale(weight, scale)
        factors = None
        if moments is not None:
            moments = replace(moments, layout=layout, target=None)
            if scale is not None:
                factors = layout.split(spread_scale(scale.float(), tuple(weight.shape)))
        cut = layout if self.mask is None or moments is not None else layout.scalars
        problem = ClusterProblem(
            points=cut.split(normal),
            n_entries=plan.spec.n_entries,
            importance=None if importance is None else cut.split(importance.to(torch.float32)),
            moments=moments,
            lut_quantizer=self._quantizer() if quantized else None,
            seed=plan.seed,
            resolution=plan.resolution,
            scales=factors,
        )
        if not entry.supports_cuda:
            problem = _on_host(problem)
        if self.mask is not None and moments is None:
            return fit_nonzeros(
                problem, self.mask, layout, lambda part: self._solve(self._weighted(part))
            )
        problem = self._weighted(problem)
        if zeros is None:
            return self._solve(problem)
        if self.mask is not None:  # the moments are of the whole weight
            problem = with_room(problem)
        return self._with_zeros(problem, zeros)

    def is_exact(self, weight: Tensor, layout: BlockLayout, zeros: Tensor | None) -> bool:
        """Return whether tables can hold a weight as it is, with a zero where zeros are to stay."""
        if self.mask is not None:
            return False
        points, k = layout.split(weight), self.plan.spec.n_entries
        found = ExactBlocks.of(points, k, and_zero=zeros is not None)
        return found is not None and found.every

    def _solve(self, problem: ClusterProblem) -> Codebook:
        plan, of_outputs = self.plan, self.item.entry.needs_moments
        and_zero = problem.zeros is not None
        exact = ExactBlocks.of(problem.points, problem.n_entries, and_zero=and_zero)
        if exact is not None and exact.every:
            made = _stored(problem, exact.codebook, exact=True)
            # An error of rounding had better be made up for, by an algorithm that can.
            if not of_outputs or _is_exact(made, problem.points):
                return made
        codebook = fit_checked(self.item, plan.algorithm_options, problem, plan.name)
        if exact is not None and not of_outputs and codebook.quantized is None:
            codebook = exact.put_into(codebook)
        return _stored(problem, codebook, exact=exact is not None)

    def _with_zeros(self, problem: ClusterProblem, zeros: Tensor) -> Codebook:
        """Cluster with an entry for zero in every table, and every zero on it."""
        entry = self.item.entry
        zeros = zeros.to(problem.points.device)
        codebook = self._solve(replace(problem, zeros=zeros if entry.keeps_zeros else None))
        # What the core has quantized is no longer what the algorithm made.
        fitted = entry.fits_quantized or problem.lut_quantizer is None
        if entry.keeps_zeros and fitted:
            return codebook
        return keep_zeros(
            fill_points(problem.points, zeros),
            problem.importance,
            codebook,
            self.dtype,
            reassign=not entry.needs_moments,
        )

    def _weighted(self, problem: ClusterProblem) -> ClusterProblem:
        """Weigh vectors whole where the algorithm takes no weights of their elements."""
        counts = problem.importance
        if counts is None or counts.shape[-1] == 1 or self.item.entry.supports_vector_importance:
            return problem
        return replace(problem, importance=counts.sum(-1, keepdim=True).expand_as(counts))

    def _quantizer(self) -> LutQuantizer | None:
        spec = self.plan.spec
        return make_lut_quantizer(
            self.catalog, self.plan.lut_quantizer, spec.lut_qspec, self.plan.name
        )


def _is_exact(codebook: Codebook, points: Tensor) -> bool:
    return bool((codebook.decode().to(points.dtype) == points).all())


def _stored(problem: ClusterProblem, codebook: Codebook, *, exact: bool) -> Codebook:
    """Return the codebook with its entries quantized, if they are to be and are not yet.

    ``exact`` says that some blocks may be so, and are to be so quantized too where possible.
    """
    quantizer = problem.lut_quantizer
    if quantizer is None or codebook.quantized is not None:
        return codebook
    made = quantize_codebook(problem.points, problem.importance, codebook, quantizer)
    return quantize_exactly(codebook, made, quantizer, problem.points.dtype) if exact else made


def _on_host(problem: ClusterProblem) -> ClusterProblem:
    parts = {name: getattr(problem, name) for name in ("points", "importance", "scales")}
    return replace(problem, **{n: part.cpu() for n, part in parts.items() if part is not None})
