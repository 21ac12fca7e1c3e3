"""One weight and its plan in, one palettized tensor out. Knows no model."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from palette_core.engine.jobs import Job, check_finite
from palette_core.engine.results import Clustered
from palette_core.errors import ClusteringError, PaletteError, PlanError
from palette_core.planning import TensorPlan
from palette_core.planning.choose import default_clusterer
from palette_core.plugins import (
    ClustererEntry,
    ClusterProblem,
    InputMoments,
)
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.checked.clusterers import fit_checked
from palette_core.plugins.checked.lut_quantizers import make_lut_quantizer
from palette_core.plugins.options import validate_options
from palette_core.plugins.registries import Registered
from palette_core.tensors.codebook import Codebook
from palette_core.tensors.distortion import square_sums
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.quantized_fit import quantize_codebook
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
        zeros = None
        if plan.spec.preserve_zero:
            # Of the weight: an aim has values where the weight was pruned.
            zeros = zero_points(plan.name, plan.layout.split(weight))
        scale = None
        if plan.spec.enable_per_channel_scale:
            kept = aim if zeros is None else aim.masked_fill(zero_mask(weight, plan.layout), 0.0)
            scale = _channel_scale(kept, plan.axis)
        problem = _problem(plan, aim, importance, scale, item.entry, catalog)
        if moments is not None:
            problem = replace(problem, moments=_scaled(moments, plan, scale))
        if zeros is not None:
            zeros = zeros.to(problem.points.device)
            problem = replace(problem, zeros=zeros if item.entry.keeps_zeros else None)
        codebook = _fit(plan, item, problem)
        # What the core has quantized is no longer what the algorithm made.
        fitted = item.entry.fits_quantized or problem.lut_quantizer is None
        if zeros is not None and not (item.entry.keeps_zeros and fitted):
            codebook = keep_zeros(
                fill_points(problem.points, zeros),
                problem.importance,
                codebook,
                weight.dtype,
                reassign=not item.entry.needs_moments,
            )
        palettized = PalettizedTensor.from_codebook(
            codebook, plan.layout, n_bits=plan.spec.n_bits, dtype=weight.dtype, scale=scale
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


def _scaled(moments: InputMoments, plan: TensorPlan, scale: Tensor | None) -> InputMoments:
    """Return moments for points of the plan's layout, whose channels were divided by ``scale``."""
    moments = replace(moments, layout=plan.layout, target=None)
    return moments if scale is None else moments.divided_by(scale)


def _channel_scale(weight: Tensor, axis: int) -> Tensor:
    """Return the largest magnitude per output channel; 0 makes a channel decode to exact zeros."""
    others = [d for d in range(weight.dim()) if d != axis]
    return weight.abs().amax(dim=others, keepdim=True)


def _problem(
    plan: TensorPlan,
    weight: Tensor,
    importance: Tensor | None,
    scale: Tensor | None,
    entry: ClustererEntry,
    catalog: Catalog,
) -> ClusterProblem:
    layout = plan.layout
    normal = weight
    if scale is not None:
        normal = weight / torch.where(scale == 0, torch.ones_like(scale), scale)
        if importance is None and entry.supports_importance and bool((scale == 0).any()):
            # What stands for a channel of zeros does not matter: it must not pull an entry.
            importance = (scale != 0).to(torch.float32).expand_as(weight)
        elif importance is not None:
            # What an error of the normalised weight does to the weight itself.
            importance = importance.to(weight.device, torch.float32) * scale.float().square()
    if importance is not None:
        if not entry.supports_importance:
            raise PlanError(
                f"{plan.name}: algorithm {entry.name!r} does not take sensitivities; choose one "
                "that does, or prepare without sensitivity_path"
            )
        importance = layout.split(importance.to(weight.device, torch.float32))
        if layout.cluster_dim > 1 and not entry.supports_vector_importance:
            importance = importance.sum(-1, keepdim=True).expand_as(importance)
    points = layout.split(normal)
    if not entry.supports_cuda and points.device.type != "cpu":
        points = points.cpu()
        importance = None if importance is None else importance.cpu()
    return ClusterProblem(
        points=points,
        n_entries=plan.spec.n_entries,
        importance=importance,
        lut_quantizer=make_lut_quantizer(
            catalog, plan.lut_quantizer, plan.spec.lut_qspec, plan.name
        ),
        seed=plan.seed,
        resolution=plan.resolution,
    )


def _fit(plan: TensorPlan, item: Registered[ClustererEntry], problem: ClusterProblem) -> Codebook:
    codebook = fit_checked(item, plan.algorithm_options, problem, plan.name)
    quantizer = problem.lut_quantizer
    if quantizer is None or codebook.quantized is not None:
        return codebook
    return quantize_codebook(problem.points, problem.importance, codebook, quantizer)
