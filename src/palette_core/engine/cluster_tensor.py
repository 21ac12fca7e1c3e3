"""One weight and its plan in, one palettized tensor out. Knows no model."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from palette_core.engine.fitted_scales import Scaled, fit_scales
from palette_core.engine.jobs import Job, check_finite
from palette_core.engine.results import Clustered
from palette_core.engine.sparsity import beside_zero, find_zeros, fit_nonzeros, with_room
from palette_core.errors import ClusteringError, PaletteError, PlanError
from palette_core.planning import TensorPlan
from palette_core.planning.choose import default_clusterer
from palette_core.plugins import (
    ClustererEntry,
    ClusterProblem,
    InputMoments,
    LutQuantizer,
)
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.checked.clusterers import damping_of, fit_checked
from palette_core.plugins.checked.lut_quantizers import make_lut_quantizer
from palette_core.plugins.options import validate_options
from palette_core.plugins.registries import Registered
from palette_core.tensors.codebook import Codebook
from palette_core.tensors.distortion import square_sums
from palette_core.tensors.layout import BlockLayout
from palette_core.tensors.moment_scales import output_error, output_scales
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.quantized_fit import quantize_codebook
from palette_core.tensors.scales import apply_scale, divide_by_scale, scale_shape, spread_scale
from palette_core.tensors.zeros import fill_points, keep_zeros, zero_mask, zero_points


def cluster_tensor(job: Job, catalog: Catalog) -> Clustered:
    """Palettize a weight as its plan says.

    Where the algorithm needs moments and there are none, the default one takes its place.

    Raises:
        WeightError: NaN or infinite weights.
        ClusteringError: the algorithm failed, or returned something that is no codebook.
        PlanError: importance was given to an algorithm that takes neither it nor moments.
    """
    start = time.perf_counter()
    plan, importance, moments = job.plan, job.importance, job.moments
    weight = job.weight.detach()
    if not job.checked:
        check_finite(plan.name, weight)
    item = catalog.clusterers.find(plan.algorithm)
    if not item.entry.needs_moments:
        moments = None
    elif moments is None:
        plan = without_moments(plan, catalog)
        item = catalog.clusterers.find(plan.algorithm)
    elif not item.entry.supports_importance:
        importance = None  # moments say more; what importance there is serves the fallback
    with torch.no_grad():
        aim = weight
        if moments is not None and moments.target is not None:
            aim = moments.target.to(weight.device, weight.dtype)
            check_finite(plan.name, aim)
        mask, zeros_stay = find_zeros(plan.spec, weight)
        zeros = None
        if zeros_stay:
            # Of the weight: an aim has values where the weight was pruned.
            zeros = zero_points(plan.name, plan.layout.split(weight))
        task = _Task(plan, item, catalog, weight.dtype, mask)
        if plan.spec.is_scaled:
            kept = aim if zeros is None else aim.masked_fill(zero_mask(weight, plan.layout), 0.0)
            codebook, scale = _with_scales(task, kept, importance, moments, zeros)
        else:
            codebook, scale = task.fit(aim, plan.layout, importance, moments, zeros), None
        if mask is not None:
            codebook, kept = beside_zero(codebook, plan.spec.n_entries)
            mask = plan.layout.merge(kept[..., None])
        palettized = PalettizedTensor.from_codebook(
            codebook,
            plan.layout,
            n_bits=plan.spec.n_bits,
            dtype=weight.dtype,
            scale=scale,
            mask=mask,
        ).to(weight.device)
        error, norm = square_sums(weight, palettized)
    seconds = time.perf_counter() - start
    before, after = codebook.objective_before, codebook.objective_after
    return Clustered(palettized, error, norm, seconds, plan.algorithm, before, after)


def cluster_here(job: Job, catalog: Catalog) -> Clustered:
    """Cluster a weight in this process or thread.

    Raises:
        PaletteError: naming the tensor.
    """
    try:
        return cluster_tensor(job, catalog)
    except (PaletteError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ClusteringError(f"{job.plan.name}: {type(error).__name__}: {error}") from error


def without_moments(plan: TensorPlan, catalog: Catalog) -> TensorPlan:
    """Return the plan with the default algorithm for its points, for want of moments.

    Raises:
        PlanError: there is none; DuplicatePluginError: there are several.
    """
    name = default_clusterer(plan.spec.cluster_dim, catalog)
    defaults = validate_options(catalog.clusterers.get(name), {})
    return replace(plan, algorithm=name, algorithm_options=defaults)


_OUTPUT_ROUNDS = 2


@dataclass(frozen=True)
class _Task:
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
        problem = ClusterProblem(
            points=layout.split(normal),
            n_entries=plan.spec.n_entries,
            importance=self._importance(importance, layout),
            moments=moments,
            lut_quantizer=self._quantizer() if quantized else None,
            seed=plan.seed,
            resolution=plan.resolution,
            scales=factors,
        )
        if not entry.supports_cuda:
            problem = _on_host(problem)
        if zeros is None:
            return self._solve(problem)
        if self.mask is None:
            return self._with_zeros(problem, zeros)
        if moments is None:
            return fit_nonzeros(problem, self.mask, layout, self._solve)
        return self._with_zeros(with_room(problem), zeros)  # the moments are of the whole weight

    def _solve(self, problem: ClusterProblem) -> Codebook:
        plan = self.plan
        codebook = fit_checked(self.item, plan.algorithm_options, problem, plan.name)
        quantizer = problem.lut_quantizer
        if quantizer is None or codebook.quantized is not None:
            return codebook
        return quantize_codebook(problem.points, problem.importance, codebook, quantizer)

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

    def _importance(self, importance: Tensor | None, layout: BlockLayout) -> Tensor | None:
        if importance is None:
            return None
        points = layout.split(importance.to(torch.float32))
        if layout.cluster_dim > 1 and not self.item.entry.supports_vector_importance:
            points = points.sum(-1, keepdim=True).expand_as(points)
        return points

    def _quantizer(self) -> LutQuantizer | None:
        spec = self.plan.spec
        return make_lut_quantizer(
            self.catalog, self.plan.lut_quantizer, spec.lut_qspec, self.plan.name
        )


def _on_host(problem: ClusterProblem) -> ClusterProblem:
    parts = {name: getattr(problem, name) for name in ("points", "importance", "scales")}
    return replace(problem, **{n: part.cpu() for n, part in parts.items() if part is not None})


def _with_scales(
    task: _Task,
    weight: Tensor,
    importance: Tensor | None,
    moments: InputMoments | None,
    zeros: Tensor | None,
) -> tuple[Codebook, Tensor]:
    """Return tables, indices and scales of a weight."""
    plan = task.plan
    block_size = plan.spec.scale_block_size
    what = Scaled(
        weight,
        None if importance is None else importance.to(weight.device, torch.float32),
        plan.layout,
        plan.axis,
        scale_shape(plan.shape, plan.axis, block_size),
        by_channel=block_size is None,
    )

    def cluster(part: Scaled, scale: Tensor, stored: bool) -> Codebook:
        its_zeros = zeros if part is what else None
        return task.fit(
            part.weight, part.layout, counted(part, scale, task.item.entry), None,
            its_zeros, scale, quantized=stored,
        )  # fmt: skip

    if moments is not None:
        return _with_moments(task, what, moments, zeros)
    if plan.spec.scale_fit == "range":
        scale = what.range()
        counts = what.importance
        if counts is not None:
            counts = counted(what, scale, task.item.entry)
        elif task.item.entry.supports_importance and bool((scale == 0).any()):
            # What stands for a block of zeros does not matter: it must not pull an entry.
            counts = spread_scale((scale != 0).float(), tuple(weight.shape))
        return task.fit(weight, plan.layout, counts, None, zeros, scale), scale
    return fit_scales(what, cluster)


def _with_moments(
    task: _Task, what: Scaled, moments: InputMoments, zeros: Tensor | None
) -> tuple[Codebook, Tensor]:
    """Do so for the outputs of the layer: scales of the weight first, then those of the outputs."""
    plan, laid_out = task.plan, replace(moments, layout=what.layout, target=None)

    def fit(scale: Tensor) -> tuple[Codebook, Tensor]:
        return task.fit(what.weight, what.layout, None, laid_out, zeros, scale), scale

    if plan.spec.scale_fit == "range":
        return fit(what.range())
    fallback = without_moments(plan, task.catalog)
    item = task.catalog.clusterers.find(fallback.algorithm)
    plain = replace(task, plan=fallback, item=item)
    weighted = replace(what, importance=what.layout.merge(laid_out.importance()))

    def cluster(part: Scaled, scale: Tensor, stored: bool) -> Codebook:
        counts = counted(part, scale, plain.item.entry)
        return plain.fit(part.weight, part.layout, counts, scale=scale, quantized=stored)

    damping = damping_of(task.item, plan.algorithm_options, plan.name)
    if damping is None:
        damping = laid_out.damping()
    best = fit(fit_scales(weighted, cluster)[1])
    before = best[0].objective_before
    error = _output_error(what, laid_out, best, damping)
    for _ in range(_OUTPUT_ROUNDS):
        codebook, scale = best
        found = output_scales(laid_out, what.weight, what.unit(codebook), scale, damping)
        if found is None:
            break
        near = codebook, what.stored(found)
        for candidate in (near, fit(near[1])):
            now = _output_error(what, laid_out, candidate, damping)
            if now < error:
                error = now
                best = replace(candidate[0], objective_before=before, objective_after=now), near[1]
        if best[1] is scale:
            break
    return best


def _output_error(
    what: Scaled, moments: InputMoments, found: tuple[Codebook, Tensor], damping: float
) -> float:
    codebook, scale = found
    return output_error(moments, what.weight - apply_scale(what.unit(codebook), scale), damping)


def counted(what: Scaled, scale: Tensor, entry: ClustererEntry) -> Tensor | None:
    """Return what errors of a divided weight do to the weight: importance times s²."""
    if not entry.supports_importance:
        return what.importance
    wide = scale.float()
    most = wide.max()
    square = (wide / torch.where(most > 0, most, torch.ones_like(most))).square()
    square = spread_scale(square, tuple(what.weight.shape))
    return square if what.importance is None else square * what.importance
