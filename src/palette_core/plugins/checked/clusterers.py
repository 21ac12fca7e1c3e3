"""Clusterers at work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel
from torch import Tensor

from palette_core.plugins.checked.lut_quantizers import check_quantized
from palette_core.plugins.clusterers import Clusterer, ClustererEntry, ClusterProblem
from palette_core.plugins.guards import shown
from palette_core.plugins.making import Made, make
from palette_core.plugins.options import validate_options
from palette_core.plugins.registries import Registered
from palette_core.tensors.codebook import Codebook

if TYPE_CHECKING:
    from palette_core.config.vectors import VectorKMeansConfig


def fit_checked(
    item: Registered[ClustererEntry],
    options: BaseModel,
    problem: ClusterProblem,
    tensor: str,
) -> Codebook:
    """Let an algorithm cluster a problem, and check the codebook.

    Args:
        item: the algorithm.
        options: of a plan.
        problem: as the entry's flags ask for it.
        tensor: name of the weight that the problem is about.

    Raises:
        ClusteringError: the algorithm fails, writes to the points, or returns no codebook.
    """
    made: Made[Clusterer] = make(item, options, tensor=tensor)
    given = made.apart(problem)
    version = _version(given.points)
    codebook = made.ask(lambda clusterer: clusterer.fit(given))
    if _version(given.points) != version:
        raise made.wrong("has written to the points it was given, which are to be read only")
    _check_codebook(made, codebook, problem)
    return made.apart(codebook)


def damping_of(
    item: Registered[ClustererEntry], options: Mapping[str, Any] | BaseModel, tensor: str
) -> float | None:
    """Return what an algorithm adds to the diagonal of moments, as a share of its mean.

    None is as much as `InputMoments.damping`.

    Args:
        item: the algorithm.
        options: the user's, or of a plan.
        tensor: name of the weight that the moments are for.

    Raises:
        ClusteringError: the algorithm fails to say so.
    """
    ask = item.entry.damping
    if ask is None:
        return None
    made, valid = Made.of(item, ask, tensor), validate_options(item.entry, options)
    given: Any = made.ask(lambda damping: damping(valid))
    if given is None:
        return None
    if not isinstance(given, (int, float)) or not 0 <= given < math.inf:
        raise made.wrong(f"damps by {shown(given)}, expected a number of at least 0, or None")
    return float(given)


def vector_options(
    item: Registered[ClustererEntry], settings: VectorKMeansConfig
) -> Mapping[str, Any] | None:
    """Return the options of an algorithm that settings of vector k-means stand for.

    None is returned by algorithms that have none.

    Raises:
        ClusteringError: the algorithm fails to say so.
    """
    ask = item.entry.vector_options
    if ask is None:
        return None
    made = Made.of(item, ask)
    given: Any = made.ask(lambda options: options(settings))
    if not isinstance(given, Mapping):
        raise made.wrong(f"its vector_options made {shown(given)}, expected options by name")
    return given


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _ends(values: Tensor) -> tuple[float, ...]:
    """Return the least and the greatest value, NaN where there is one; nothing of no values."""
    return tuple(float(end) for end in torch.aminmax(values)) if values.numel() else ()


def _greatest(codes: Tensor) -> int:
    """Return the greatest code, −1 of none."""
    if not codes.numel():
        return -1
    # By numpy: torch would start threads for it beside those that cluster.
    return int(codes.numpy().max() if codes.device.type == "cpu" else codes.max())


def _check_codebook(made: Made[Any], codebook: Any, problem: ClusterProblem) -> None:
    """Refuse what is not a codebook of the problem, before it reaches a model."""
    if type(codebook) is not Codebook:
        raise made.wrong(f"returned {type(codebook).__name__}, not a Codebook")
    blocks, count, dim = problem.points.shape
    lut: object = codebook.lut
    codes: object = codebook.codes
    if not isinstance(lut, Tensor) or not isinstance(codes, Tensor):
        what = f"{type(lut).__name__} and {type(codes).__name__}"
        raise made.wrong(f"returned lut and codes of {what}, expected tensors")
    made.demand_plain(lut, codes)
    for what, got, right in (
        ("lut shape", tuple(lut.shape), (blocks, problem.n_entries, dim)),
        ("codes shape", tuple(codes.shape), (blocks, count)),
        ("codes dtype", codes.dtype, torch.uint8),
        ("a lut on", lut.device, problem.points.device),
        ("codes on", codes.device, problem.points.device),
    ):
        if got != right:
            raise made.wrong(f"returned {what} {got}, expected {right}")
    if not lut.dtype.is_floating_point:
        raise made.wrong(f"returned a lut of {lut.dtype}, expected a floating dtype")
    if not all(math.isfinite(end) for end in _ends(lut.to(problem.points.dtype))):
        raise made.wrong(
            f"returned a lut with entries that are NaN or infinite in {problem.points.dtype}"
        )
    last = _greatest(codes)
    if last >= problem.n_entries:
        raise made.wrong(f"returned code {last}, expected codes below {problem.n_entries}")
    if codebook.quantized is not None:
        check_quantized(made, codebook.quantized, lut)
    if problem.zeros is not None:
        _check_zeros(made, codebook, problem.points.dtype, problem.zeros)


def _check_zeros(made: Made[Any], codebook: Codebook, dtype: torch.dtype, zeros: Tensor) -> None:
    """Refuse tables without a zero, and zeros that do not decode to it."""
    empty = (codebook.lut.to(dtype) == 0).all(-1)
    lost = int((~empty.gather(1, codebook.codes.long()) & zeros).sum())
    if lost or not bool(empty.any(1).all()):
        raise made.wrong(
            f"declares keeps_zeros, and {lost} of {int(zeros.sum())} zeros decode to "
            f"something else, {int((~empty.any(1)).sum())} of {len(empty)} tables have no zero"
        )
