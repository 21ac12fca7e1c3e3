"""Checks of clustering algorithms. Entries are judged as the core stores and decodes them."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from palette_core.plugins import ClusterProblem
from palette_core.plugins.kinds import CLUSTERER
from palette_core.tensors.codebook import Codebook, gather_entries
from palette_core.testing._kit import Subject, check, demand, fail
from palette_core.testing._probes import (
    DTYPES,
    ENTRIES,
    bits,
    dims_of,
    draw,
    fit,
    global_rng_untouched,
    importance_of,
    other_global_rng,
    problem,
    problems,
)

_KIND = CLUSTERER


def _decoded(given: ClusterProblem, codebook: Codebook) -> Tensor:
    """Return the points as the core decodes them, entries cast to the dtype of the points."""
    return gather_entries(codebook.lut.to(given.points.dtype), codebook.codes)


def _exact(subject: Subject, options: BaseModel, weight: Tensor, **how: Any) -> None:
    for dim in dims_of(subject.entry):
        _demand_exact(subject, options, problem(subject.entry, weight, dim, **how))


def _demand_exact(subject: Subject, options: BaseModel, given: ClusterProblem) -> None:
    decoded = _decoded(given, fit(subject, options, given))
    wrong = int((decoded != given.points).sum())
    demand(
        subject,
        wrong == 0,
        f"{wrong} of {decoded.numel()} values are not exact, in {given.points.dtype} with "
        f"cluster_dim {given.points.shape[2]} and {given.n_entries} entries",
    )


@check(_KIND)
def shapes(subject: Subject) -> None:
    """The result is a Codebook: lut [B, K, D] and codes [B, N], on the device of the points."""
    for options, given in problems(subject):
        made: object = fit(subject, options, given)
        if not isinstance(made, Codebook):
            fail(subject, f"fit returned {type(made).__name__}, not a Codebook")
        blocks, count, dim = given.points.shape
        for what, got, right in (
            ("lut of shape", tuple(made.lut.shape), (blocks, given.n_entries, dim)),
            ("codes of shape", tuple(made.codes.shape), (blocks, count)),
            ("a lut on", made.lut.device, given.points.device),
            ("codes on", made.codes.device, given.points.device),
        ):
            demand(subject, got == right, f"returned {what} {got}, expected {right}")


@check(_KIND)
def dtypes(subject: Subject) -> None:
    """The lut is float32 or wider and the codes uint8, whatever floating dtype the points have."""
    for options in subject.options:
        for dim in dims_of(subject.entry):
            for dtype in DTYPES:
                given = problem(subject.entry, draw(8, 10, dtype=dtype), dim)
                made = fit(subject, options, given)
                wide = made.lut.dtype in (torch.float32, torch.float64)
                demand(subject, wide, f"returned a lut of {made.lut.dtype} for points of {dtype}")
                demand(
                    subject,
                    made.codes.dtype is torch.uint8,
                    f"returned codes of {made.codes.dtype} for points of {dtype}",
                )


@check(_KIND)
def code_range(subject: Subject) -> None:
    """Every code is below the number of entries."""
    for entries in (2, ENTRIES, 256):
        for options, given in problems(subject, n_entries=entries):
            largest = int(fit(subject, options, given).codes.max())
            demand(subject, largest < entries, f"returned code {largest} for {entries} entries")


@check(_KIND)
def finite(subject: Subject) -> None:
    """Entries are finite, also where squares or sums of the points leave the range of a dtype."""
    for options in subject.options:
        for dim in dims_of(subject.entry):
            for dtype, unit in ((torch.float32, 1e30), (torch.float32, 1e-30), (DTYPES[1], 1e4)):
                weight = (draw(24, 10).clamp(-3, 3).double() * unit).to(dtype)
                given = problem(subject.entry, weight, dim)
                stored = fit(subject, options, given).lut.to(dtype)
                demand(
                    subject,
                    bool(stored.isfinite().all()),
                    f"returned entries that are not finite for {dtype} points of about {unit:g}",
                )


@check(_KIND, applies=lambda entry: entry.supports_scalar)
def ascending(subject: Subject) -> None:
    """Entries of scalars are in ascending order, and spare ones repeat the last."""
    for options in subject.options:
        for weight in (draw(24, 10), draw(24, 10).sign()):
            lut = fit(subject, options, problem(subject.entry, weight, 1, n_entries=8)).lut
            demand(subject, bool((lut.diff(dim=1) >= 0).all()), f"entries {lut[0, :, 0].tolist()}")


@check(_KIND, applies=lambda entry: not entry.needs_moments)
def nearest(subject: Subject) -> None:
    """Each point gets the nearest entry, as the entry is once it is stored."""
    for options in subject.options:
        for dim in dims_of(subject.entry):
            for dtype in DTYPES:
                given = problem(subject.entry, draw(24, 10, dtype=dtype), dim, n_entries=8)
                made = fit(subject, options, given)
                x, lut = given.points.double(), made.lut.to(dtype).double()
                every = (x[:, :, None] - lut[:, None]).square().sum(-1)
                chosen = every.gather(2, made.codes.long()[..., None])[..., 0]
                farther = int((chosen > every.amin(-1) * (1 + 1e-5) + 1e-12).sum())
                demand(
                    subject,
                    farther == 0,
                    f"{farther} of {chosen.numel()} points of {dtype} have an entry that is not "
                    "the nearest",
                )


@check(_KIND)
def inputs_untouched(subject: Subject) -> None:
    """Points, importance and moments are left as they were."""
    for options, given in problems(subject, importance=importance_of(subject.entry)):
        hessian = None if given.moments is None else given.moments.hessian
        parts = (given.points, given.importance, hessian)
        before = [bits(part) for part in parts]
        fit(subject, options, given)
        same = [bits(part) for part in parts] == before
        demand(subject, same, "fit has written to its problem")


@check(_KIND)
def global_rng(subject: Subject) -> None:
    """The global random states of Python, numpy and torch are left as they were."""
    for options, given in problems(subject):
        with global_rng_untouched(subject):
            fit(subject, options, given)


@check(_KIND, applies=lambda entry: entry.deterministic)
def same_seed(subject: Subject) -> None:
    """The same problem gives the same codebook bit for bit, whatever the global random states."""
    for options, given in problems(subject):
        made = []
        for state in (1, 2):
            with other_global_rng(state):
                made.append(fit(subject, options, given))
        _demand_same(subject, made[0], made[1], "the same problem gave two results")


@check(_KIND, applies=lambda entry: entry.deterministic)
def blocks(subject: Subject) -> None:
    """A block comes out the same with other blocks beside it, or with none."""
    for options in subject.options:
        for dim in dims_of(subject.entry):
            weight = draw(24, 10)
            others = torch.cat([weight[:8], draw(16, 10, seed=5) * 3 + 1])
            alone = fit(subject, options, problem(subject.entry, weight[:8], dim))
            for company in (weight, others):
                together = fit(subject, options, problem(subject.entry, company, dim, blocks=3))
                first = Codebook(together.lut[:1], together.codes[:1])
                _demand_same(subject, alone, first, "block 0 depends on the blocks beside it")


@check(_KIND)
def few_points(subject: Subject) -> None:
    """Fewer points than entries are reproduced exactly."""
    for options in subject.options:
        _exact(subject, options, draw(4, 3), n_entries=16)


@check(_KIND)
def constants(subject: Subject) -> None:
    """A block of equal values is reproduced exactly."""
    for options in subject.options:
        for value in (0.0, 0.1, -3e4):
            for dtype in DTYPES:
                _exact(subject, options, torch.full((8, 6), value, dtype=dtype))


@check(_KIND)
def few_values(subject: Subject) -> None:
    """At most as many distinct points as entries are reproduced exactly."""
    for options in subject.options:
        for dim in dims_of(subject.entry):
            for dtype in DTYPES:
                vectors = draw(dim, ENTRIES, dtype=dtype).repeat(3, 5)
                for entries in (ENTRIES, 2 * ENTRIES):
                    given = problem(subject.entry, vectors, dim, n_entries=entries)
                    _demand_exact(subject, options, given)


@check(_KIND)
def one_mean(subject: Subject) -> None:
    """The error is never larger than that of one mean for all points of a block."""
    for options in subject.options:
        for dim in dims_of(subject.entry):
            for shift in (0.0, 100.0):
                given = problem(subject.entry, draw(24, 10) + shift, dim, blocks=3)
                x = given.points.double()
                gap = _decoded(given, fit(subject, options, given)).double() - x
                mean = x.mean(dim=1, keepdim=True) - x
                error, bound = (_errors(given, part) for part in (gap, mean))
                held = bool((error <= bound * (1 + 1e-6)).all())
                demand(subject, held, f"errors {error.tolist()}; those of one mean: {bound}")


def _errors(given: ClusterProblem, gap: Tensor) -> Tensor:
    """Return squared errors by block; of the outputs, where moments say what those are."""
    if given.moments is None:
        return gap.square().sum((1, 2))
    rows = given.moments.layout.merge(gap)
    return (rows @ given.moments.hessian[0].double() * rows).sum()[None]


@check(_KIND)
def nan(subject: Subject) -> None:
    """A NaN or an infinity among the points raises an error, and never becomes a palette."""
    for options in subject.options:
        for dim in dims_of(subject.entry):
            for dtype in DTYPES:
                for bad in (float("nan"), float("inf")):
                    weight = draw(8, 10, dtype=dtype)
                    weight[5, 3] = bad
                    try:
                        fit(subject, options, problem(subject.entry, weight, dim))
                    except Exception:
                        continue
                    fail(subject, f"a {dtype} point of {bad} went through with cluster_dim {dim}")


def _demand_same(subject: Subject, a: Codebook, b: Codebook, text: str) -> None:
    same = bits(a.lut) == bits(b.lut) and bits(a.codes) == bits(b.codes)
    demand(subject, same, text)
