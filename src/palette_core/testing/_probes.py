"""Measuring tools of the checks: bytes of tensors, global random states, clustering problems."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from palette_core._common.rng import global_rng, untouched_global_rng
from palette_core.plugins import ClusterProblem, InputMoments
from palette_core.tensors.codebook import Codebook
from palette_core.tensors.layout import BlockLayout
from palette_core.testing._kit import Subject, demand

ENTRIES = 4
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def bits(tensor: Tensor | None) -> bytes:
    """Return a tensor's bytes: equal where every bit is, NaN included."""
    if tensor is None:
        return b""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal numbers, the same in every run, without the global generators."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def dims_of(entry: Any) -> list[int]:
    """Lengths of the vectors that a clusterer takes."""
    return [1] * bool(entry.supports_scalar) + [2, 4] * bool(entry.supports_vector)


def problem(
    entry: Any,
    weight: Tensor,
    dim: int,
    *,
    blocks: int = 1,
    n_entries: int = ENTRIES,
    importance: Tensor | None = None,
    seed: int = 1,
) -> ClusterProblem:
    """Return the problem of a matrix cut into ``blocks`` runs of rows.

    Args:
        entry: the clusterer's record.
        weight: ``[R, C]``.
        dim: length of vectors, along the rows.
        blocks: how many; divides R.
        n_entries: K.
        importance: of the weight's shape.
        seed: of the problem.
    """
    rows, columns = weight.shape
    layout = BlockLayout((rows, columns), (rows // blocks, columns), dim, 0)
    moments = None
    if entry.needs_moments:
        x = draw(4 * columns + 8, columns, seed=7)
        hessian = (x.mT @ x / len(x))[None]
        moments = InputMoments(hessian=hessian, layout=layout, count=len(x))
    return ClusterProblem(
        points=layout.split(weight),
        n_entries=n_entries,
        importance=None if importance is None else layout.split(importance.float()),
        moments=moments,
        seed=seed,
    )


def fit(subject: Subject, options: BaseModel, given: ClusterProblem) -> Codebook:
    """Call a clusterer made anew; what it returns is not checked."""
    return cast("Codebook", subject.entry.factory(options).fit(given))


def problems(subject: Subject, **how: Any) -> Iterator[tuple[BaseModel, ClusterProblem]]:
    """Yield a matrix of normal numbers in three blocks, with every set of options."""
    for options in subject.options:
        for dim in dims_of(subject.entry):
            yield options, problem(subject.entry, draw(24, 10), dim, blocks=3, **how)


def importance_of(entry: Any) -> Tensor | None:
    """Return importance of [24, 10] elements, a third of it zero, where an algorithm takes it."""
    if not entry.supports_importance:
        return None
    rows = draw(6, 10, seed=3).abs() + 0.1
    rows[::3] = 0.0
    return rows.repeat_interleave(4, dim=0)  # equal within a vector


@contextlib.contextmanager
def global_rng_untouched(subject: Subject) -> Iterator[None]:
    """Report a change of a global random state."""
    before = global_rng()
    yield
    states = zip(("random", "numpy", "torch"), before, global_rng(), strict=True)
    moved = [name for name, was, now in states if was != now]
    demand(subject, not moved, f"the global random state of {', '.join(moved)} has changed")


@contextlib.contextmanager
def other_global_rng(seed: int) -> Iterator[None]:
    """Run with other global random states, and put back the present ones."""
    with untouched_global_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield
