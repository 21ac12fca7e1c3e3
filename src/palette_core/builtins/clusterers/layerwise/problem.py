"""From a problem with input moments to a matrix with a first solution, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palette_core._common.threads import take_the_cores
from palette_core.builtins.clusterers.layerwise import products
from palette_core.builtins.clusterers.layerwise.steps import Matrix, Solution, costs_of
from palette_core.builtins.clusterers.layerwise.tables import cast_tables, quantized_tables
from palette_core.errors import ClusteringError
from palette_core.plugins import ClusterProblem, InputMoments
from palette_core.tensors import (
    Codebook,
    fill_points,
    in_order,
    keep_zeros,
    quantize_codebook,
    tidy_entries,
    tidy_quantized,
)

Array = NDArray[Any]
_HEAVY = 1e3  # what all pinned points of a block weigh, of what its others weigh
_LONG = 1 << 25  # elements times columns; below, what it saves is less than beginning anew takes


@dataclass(frozen=True)
class Posed:
    """A problem in matrix form.

    Attributes:
        matrix: the weight, scaled moments and who shares what.
        start: importance-weighted k-means.
        unit: by which to multiply costs to get mean squared outputs.
    """

    matrix: Matrix
    start: Solution
    unit: float


def weighted_kmeans(problem: ClusterProblem, moments: InputMoments) -> Codebook:
    """Return k-means with the mean squares of the inputs as importance, quantized if asked.

    Pinned points are zero, and one entry of every table is.
    """
    weighted = replace(problem, importance=_importance(problem, moments), moments=None, scales=None)
    if problem.zeros is not None:
        weighted = _pinned(weighted, problem.zeros)
    found = _quantized_kmeans(weighted)
    if problem.zeros is None:
        return found
    kept = keep_zeros(weighted.points, weighted.importance, found, problem.points.dtype)
    return replace(kept, lut=kept.lut.to(torch.promote_types(kept.lut.dtype, torch.float32)))


def _importance(problem: ClusterProblem, moments: InputMoments) -> Tensor:
    """Return what errors of the points do: of the weight, they are larger by their factors."""
    importance = moments.importance()
    if problem.scales is None:
        return importance
    most = problem.scales.max()
    unit = torch.where(most > 0, most, torch.ones_like(most))
    return importance * (problem.scales / unit).square()


def _pinned(weighted: ClusterProblem, zeros: Tensor) -> ClusterProblem:
    """Return the problem with pinned points at zero, and so heavy that an entry comes to them."""
    importance = weighted.importance
    assert importance is not None
    unit = importance.amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    free = fill_points(importance / unit, zeros)
    total, count = free.double().sum((1, 2)), zeros.sum(1) * importance.shape[2]
    heavy = _HEAVY * torch.where(total > 0, total, 1.0) / count.clamp(min=1)
    importance = torch.where(zeros[..., None], heavy.float()[:, None, None], free)
    return replace(weighted, points=fill_points(weighted.points, zeros), importance=importance)


def _quantized_kmeans(weighted: ClusterProblem) -> Codebook:
    if weighted.points.shape[2] == 1:
        from palette_core.builtins.clusterers.kmeans1d.clusterer import KMeans1d

        found = KMeans1d().fit(weighted)
    else:
        from palette_core.builtins.clusterers.kmeans_vector.clusterer import KMeansVector

        found = KMeansVector().fit(weighted)
    if weighted.lut_quantizer is None:
        return found
    return quantize_codebook(weighted.points, weighted.importance, found, weighted.lut_quantizer)


def fit_with(
    name: str,
    problem: ClusterProblem,
    damping: float | None,
    improve: Callable[[Matrix, Solution], Solution],
) -> Codebook:
    """Start from weighted k-means, and let ``improve`` lower the output error.

    Where H is diagonal, or vectors lie along input coordinates, weighted k-means is the result.
    Points that the problem demands to be zero are so in every solution.

    Args:
        name: of the algorithm.
        problem: with moments.
        damping: what to add to the diagonal of each matrix of H, as a share of its mean; None is
            `InputMoments.damping`.
        improve: gets the matrix and the first solution, returns a solution.

    Raises:
        ClusteringError: there are no moments, or they cannot be used.
    """
    moments = problem.moments
    if moments is None:
        raise ClusteringError(f"{name} needs second moments of the layer's inputs, and got none")
    obstacle = moments.obstacle()
    if obstacle is not None:
        raise ClusteringError(f"{name} cannot use the layer's moments: {obstacle}")
    along_inputs = problem.points.shape[2] > 1 and (
        moments.layout.vector_axis != moments.output_axis
    )
    if moments.is_diagonal or along_inputs:
        return weighted_kmeans(problem, moments)
    first = weighted_kmeans(problem, moments)
    if _is_exact(problem, first):
        return replace(first, objective_before=0.0, objective_after=0.0)
    posed = pose(problem, moments, moments.damping() if damping is None else damping, first)
    found = improve(posed.matrix, posed.start)
    return _codebook(posed, found, problem)


def _is_exact(problem: ClusterProblem, found: Codebook) -> bool:
    """Return whether every point is an entry: nothing can be better, and float32 could be worse."""
    if found.quantized is not None:
        return False
    decoded = replace(found, lut=found.lut.to(problem.points.dtype)).decode()
    return bool(torch.equal(decoded, problem.points))


def pose(problem: ClusterProblem, moments: InputMoments, damping: float, first: Codebook) -> Posed:
    """Return the problem in matrix form, with ``first``, weighted k-means, to start from."""
    layout, points = moments.layout, problem.points
    blocks, count, dim = points.shape
    mean = float(moments.diagonal().double().mean())
    h = _damped(moments, mean, damping)
    w = moments.to_matrices(layout.merge(points).float()).flatten(0, 1).contiguous()
    factor = torch.ones(w.shape[0], 1)
    if problem.scales is not None:
        factor = moments.to_matrices(layout.merge(problem.scales)).flatten(0, 1).contiguous()
        w = w * factor
        if bool((factor == factor[:, :1]).all()):
            factor = factor[:, :1].contiguous()
    numbers = torch.arange(blocks, dtype=torch.int32)[:, None].expand(-1, count)
    table = _in_strips(numbers, moments, dim)
    rows = w.shape[0] // h.shape[0]
    share = torch.ones(w.shape[0]) if moments.share is None else moments.share.float()
    most = float(share.max()) or 1.0
    colours, component = _sharing(table, blocks)
    pinned = np.zeros(table.shape, np.bool_)
    if problem.zeros is not None:
        pinned = _in_strips(problem.zeros, moments, dim)
    matrix = Matrix(
        w=w.numpy(),
        group=np.repeat(np.arange(h.shape[0], dtype=np.int32), rows),
        share=(share / most).contiguous().numpy(),
        h=h,
        table=table,
        factor=factor.numpy(),
        wide=w.shape[1] // factor.shape[1],
        colours=colours,
        component=component,
        pinned=pinned,
        entries=first.lut.shape[1],
        dtype=points.dtype,
        quantizer=problem.lut_quantizer,
    )
    if first.quantized is None:
        tables = cast_tables(first.lut.numpy(), points.dtype)
    else:
        tables = quantized_tables(first.quantized, points.dtype)
    if problem.zeros is not None:
        tables = replace(tables, zero=_zero_entry(tables.lut, first.codes, problem.zeros))
    codes = _in_strips(first.codes, moments, dim)
    if w.numel() * w.shape[1] >= _LONG:
        take_the_cores()
    start = Solution(tables, codes, costs_of(matrix, tables, codes))
    return Posed(matrix, start, mean * most)


def _in_strips(values: Tensor, moments: InputMoments, dim: int) -> Array:
    """Return something of each point, ``[B, N]``, as a matrix, ``[M / D, C]``."""
    weight = moments.layout.merge(values[..., None].expand(-1, -1, dim))
    strips: Array = moments.to_matrices(weight).flatten(0, 1)[::dim].contiguous().numpy()
    return strips


def _of_points(strips: Array, moments: InputMoments, dim: int) -> Tensor:
    """Return ``[B, N]`` from ``[M / D, C]``: the inverse of `_in_strips`."""
    rows = torch.from_numpy(strips).repeat_interleave(dim, 0)
    weight = moments.from_matrices(rows.reshape(moments.hessian.shape[0], -1, rows.shape[1]))
    return moments.layout.split(weight)[..., 0].contiguous()


def _zero_entry(lut: Array, codes: Tensor, zeros: Tensor) -> Array:
    """Return ``[B]``: the entry that is zero; where several are, the one of the pinned points."""
    first = zeros.to(torch.uint8).argmax(dim=1, keepdim=True)
    taken = codes.gather(1, first)[:, 0].long()
    usual = torch.from_numpy((lut == 0).all(axis=2)).to(torch.uint8).argmax(dim=1)
    found: Array = torch.where(zeros.any(1), taken, usual).numpy()
    return found


def _damped(moments: InputMoments, mean: float, damping: float) -> Array:
    """Return H / ``mean``, float32, symmetric, ``damping`` times its ridge on each diagonal."""
    h = (moments.hessian / mean).to(torch.float32).contiguous()
    products.symmetrize(h.numpy())
    ridge = max(damping, 1e-6) * (moments.ridges() / mean).to(torch.float32)
    h.diagonal(dim1=1, dim2=2).add_(ridge)
    return h.numpy()


def _sharing(table: Array, n_tables: int) -> tuple[Array, Array]:
    """Return colours and components of the tables; see `Matrix`."""
    colours = np.zeros(n_tables, np.int32)
    component = np.arange(n_tables)
    if (table == table[:, :1]).all():
        return colours, component
    patterns = {row.tobytes(): row for row in (np.unique(line) for line in table)}
    neighbours: dict[int, set[int]] = {}
    for pattern in patterns.values():
        for own in pattern.tolist():
            neighbours.setdefault(own, set()).update(pattern.tolist())
    for own in range(n_tables):
        taken = {int(colours[n]) for n in neighbours.get(own, ()) if n < own}
        colours[own] = next(c for c in range(n_tables) if c not in taken)
    while True:
        before = component.copy()
        for pattern in patterns.values():
            component[pattern] = component[pattern].min()
        component = component[component]
        if np.array_equal(component, before):
            break
    _, component = np.unique(component, return_inverse=True)
    return colours, component


def _codebook(posed: Posed, found: Solution, problem: ClusterProblem) -> Codebook:
    assert problem.moments is not None
    codes = _of_points(found.codes, problem.moments, posed.matrix.dim)
    before, after = posed.start.cost * posed.unit, found.cost * posed.unit
    if problem.zeros is not None:
        return _with_zero(found, codes, before, after)
    if found.tables.stored is not None:
        tidy = tidy_quantized(found.tables.stored, codes)
        return Codebook(tidy.lut, tidy.codes, tidy.quantized, before, after)
    lut, _, codes = tidy_entries(torch.from_numpy(found.tables.lut), codes)
    return Codebook(lut, codes, None, before, after)


def _with_zero(found: Solution, codes: Tensor, before: float, after: float) -> Codebook:
    """Return all entries as they are: one that no point uses may be the zero of its table."""
    stored = found.tables.stored
    lut = torch.from_numpy(found.tables.lut) if stored is None else stored.dequantize()
    return in_order(Codebook(lut, codes, stored, before, after))
