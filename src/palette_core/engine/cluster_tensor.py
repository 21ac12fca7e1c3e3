"""One weight and its plan in, one palettized tensor out. Knows no model."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from palette_core.engine.fitted_scales import Scaled, better_of, fit_scales
from palette_core.engine.jobs import Job, check_finite
from palette_core.engine.results import Clustered
from palette_core.engine.sparsity import find_zeros, without_zeros, zeros_lost
from palette_core.engine.task import Task
from palette_core.engine.views import view_of
from palette_core.errors import ClusteringError, PaletteError
from palette_core.planning import TensorPlan
from palette_core.planning.choose import clusterer_options, default_clusterer
from palette_core.plugins import (
    ClustererEntry,
    InputMoments,
)
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.checked.clusterers import damping_of
from palette_core.tensors.codebook import Codebook
from palette_core.tensors.distortion import distortion
from palette_core.tensors.moment_scales import output_error, output_scales
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.scales import apply_scale, scale_shape, spread_scale
from palette_core.tensors.zeros import zero_mask, zero_points


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
        mask, zeros_stay = find_zeros(plan.spec, weight, plan.layout, plan.sparse_overhead)
        zeros = None
        if mask is not None and plan.spec.cluster_dim > 1:
            aim = torch.where(mask, aim, 0.0)
            if moments is not None:
                # Vectors of nonzeros lie in no column, and errors are made up for by column.
                importance, moments = plan.layout.merge(moments.importance()), None
                plan = without_moments(plan, catalog)
                item = catalog.clusterers.find(plan.algorithm)
        elif zeros_stay:
            # Of the weight: an aim has values where the weight was pruned.
            zeros = zero_points(plan.name, plan.layout.split(weight))
        task = Task(plan, item, catalog, weight.dtype, mask)
        if plan.spec.is_scaled:
            kept = aim if zeros is None else aim.masked_fill(zero_mask(weight, plan.layout), 0.0)
            codebook, scale = _with_scales(task, kept, importance, moments, zeros)
        else:
            codebook, scale = task.fit(aim, plan.layout, importance, moments, zeros), None
        if mask is not None:
            codebook, mask = without_zeros(
                codebook, mask, plan.layout, plan.spec.n_entries, weight.dtype
            )
        palettized = PalettizedTensor.from_codebook(
            codebook,
            plan.layout,
            n_bits=plan.spec.n_bits,
            dtype=weight.dtype,
            scale=scale,
            mask=mask,
        ).to(weight.device)
        error, norm, zero = distortion(weight, palettized)
        nobody_asks = not zeros_stay and plan.spec.sparsity_detection_threshold is None
        lost = zeros_lost(weight, palettized, zero) if nobody_asks else 0.0
        view = view_of(weight, palettized)
    seconds = time.perf_counter() - start
    before, after = codebook.objective_before, codebook.objective_after
    return Clustered(palettized, error, norm, seconds, plan.algorithm, before, after, lost, view)


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
    plain = plan.spec.model_copy(update={"algorithm_options": {}})
    entry = catalog.clusterers.get(name)
    defaults = clusterer_options(entry, plain, plan.vector_kmeans_config, catalog)
    return replace(plan, algorithm=name, algorithm_options=defaults)


_OUTPUT_ROUNDS = 2


def _with_scales(
    task: Task,
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
        mask=task.mask,
    )

    def cluster(part: Scaled, scale: Tensor, stored: bool) -> Codebook:
        its_zeros = zeros if part is what else None
        return replace(task, mask=part.mask).fit(
            part.weight, part.layout, counted(part, scale, task.item.entry), None,
            its_zeros, scale, quantized=stored,
        )  # fmt: skip

    exact = None
    if task.is_exact(weight, plan.layout, zeros):
        exact = _unscaled(task, what, zeros)
        if what.error(*exact) == 0:
            return exact
    elif what.by_channel and task.mask is None:
        exact = _recovered(task, what, zeros)
        if exact is not None and what.error(*exact) == 0:
            return exact
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
    found = fit_scales(what, cluster, by_entries=zeros is None and task.mask is None)
    return found if exact is None else better_of(what, found, exact)


def _unscaled(task: Task, what: Scaled, zeros: Tensor | None) -> tuple[Codebook, Tensor]:
    """Take a weight as it is: of factors other than 1 its blocks would have more values."""
    ones = what.stored(torch.ones(what.extents, device=what.weight.device))
    return _plain(task).fit(what.weight, what.layout, None, None, zeros, ones), ones


def _recovered(task: Task, what: Scaled, zeros: Tensor | None) -> tuple[Codebook, Tensor] | None:
    """Take entries and factors of a weight that is their products; None where it is not."""
    from palette_core.tensors.recovered_scales import recovered_scales

    plain, entries = _plain(task), task.plan.spec.n_entries
    best = None
    for unit, scale in recovered_scales(what.weight, what.layout, what.axis, entries):
        made = plain.fit(unit, what.layout, None, None, zeros), scale
        best = made if best is None else better_of(what, best, made)
        if what.error(*best) == 0:
            break
    return best


def _plain(task: Task) -> Task:
    """Return the task for an algorithm that needs no moments."""
    plain = replace(task, plan=without_moments(task.plan, task.catalog))
    return replace(plain, item=task.catalog.clusterers.find(plain.plan.algorithm))


def _with_moments(
    task: Task, what: Scaled, moments: InputMoments, zeros: Tensor | None
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
        its = replace(plain, mask=part.mask)
        return its.fit(part.weight, part.layout, counts, scale=scale, quantized=stored)

    damping = damping_of(task.item, plan.algorithm_options, plan.name)
    if damping is None:
        damping = laid_out.damping()
    best = fit(fit_scales(weighted, cluster, by_entries=what.mask is None)[1])
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
