"""Checks of what a clustering algorithm declares beyond the plain problem."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from pydantic import BaseModel

from palette_core.config.spec import QuantizationSpec
from palette_core.config.vectors import VectorKMeansConfig
from palette_core.errors import PluginOptionsError
from palette_core.plugins import ClusterProblem, LutQuantizer
from palette_core.plugins.catalog import get_catalog
from palette_core.plugins.kinds import CLUSTERER
from palette_core.plugins.options import validate_options
from palette_core.testing._kit import Subject, check, demand, fail
from palette_core.testing._probes import fit, importance_of, problems

_KIND = CLUSTERER
_CLOSE = 1e-4  # of the largest magnitude: sums may be added in another order


def _weighted(entry: Any) -> bool:
    return bool(entry.supports_importance)


@check(_KIND, applies=_weighted)
def importance_ones(subject: Subject) -> None:
    """Importance of one everywhere is the same as none."""
    for options, given in problems(subject):
        weighted = replace(given, importance=torch.ones_like(given.points))
        _demand_close(subject, options, given, weighted, "ones as importance changed entries")


@check(_KIND, applies=_weighted)
def importance_scale(subject: Subject) -> None:
    """Importance counts relative to that of other points: any multiple gives the same."""
    for factor in (3.0, 2.0**20, 2.0**-20):
        for options, given in problems(subject, importance=importance_of(subject.entry)):
            assert given.importance is not None
            scaled = replace(given, importance=given.importance * factor)
            text = f"importance times {factor:g} changed entries"
            _demand_close(subject, options, given, scaled, text)


@check(_KIND, applies=_weighted)
def importance_zero(subject: Subject) -> None:
    """Points of importance zero do not move the entries, and still get a code."""
    for options, given in problems(subject, importance=importance_of(subject.entry)):
        assert given.importance is not None
        free = given.importance == 0
        moved = replace(given, points=torch.where(free, given.points * -1.5 + 0.3, given.points))
        _demand_close(subject, options, given, moved, "points of importance 0 moved entries")


@check(_KIND, applies=lambda entry: entry.fits_quantized)
def quantized(subject: Subject) -> None:
    """Under a LUT quantizer the result holds quantized entries, and lut is what they decode to."""
    spec = QuantizationSpec(dtype=torch.int8)
    entry = get_catalog().lut_quantizers.get("integer")
    quantizer: LutQuantizer = entry.factory(spec, entry.options())
    for options, given in problems(subject):
        made = fit(subject, options, replace(given, lut_quantizer=quantizer))
        if made.quantized is None:
            fail(subject, "declares fits_quantized, and returned no quantized entries")
        demand(
            subject,
            made.quantized.values.dtype is torch.int8,
            f"returned entries of {made.quantized.values.dtype} where int8 was asked for",
        )
        same = torch.equal(made.quantized.dequantize(), made.lut.float())
        demand(subject, same, "lut is not what the quantized entries decode to")


@check(_KIND, applies=lambda entry: entry.keeps_zeros)
def zeros(subject: Subject) -> None:
    """Points that are to be zero decode to exactly zero, and every table has a zero."""
    for options, given in problems(subject):
        zero = torch.arange(given.points.shape[1]) % 3 == 0
        zero = zero & (torch.arange(len(given.points)) > 0)[:, None]  # none in the first block
        for points in (given.points, given.points.masked_fill(zero[..., None], 0.0)):
            made = fit(subject, options, replace(given, points=points, zeros=zero))
            empty = (made.lut.to(points.dtype) == 0).all(-1)
            demand(subject, bool(empty.any(1).all()), "a table has no entry that is zero")
            lost = int((~empty.gather(1, made.codes.long()) & zero).sum())
            demand(subject, lost == 0, f"{lost} of {int(zero.sum())} zeros are not kept")


@check(_KIND, applies=lambda entry: entry.vector_options is not None)
def vector_options(subject: Subject) -> None:
    """Settings of k-means for vectors, all of them, become options that validate, and count."""
    entry = subject.entry
    demand(subject, entry.supports_vector, "declares vector_options, and takes no vectors")
    changes: list[dict[str, Any]] = [{}, {"n_init": 2}, {"n_local_trials": 3}, {"max_iter": 7}]
    made = []
    for change in (*changes, {"tol": 0.01}):
        options = entry.vector_options(VectorKMeansConfig(**change))
        try:
            made.append(validate_options(entry, options))
        except PluginOptionsError as error:
            fail(subject, f"made options of {change} that do not validate: {error}")
        same = change and made[-1] == made[0]
        demand(subject, not same, f"{change} changes no option")


@check(_KIND, applies=lambda entry: entry.warm_up is not None)
def warm_up(subject: Subject) -> None:
    """The warm-up may be called again, and leaves results as they are."""
    for options, given in problems(subject):
        before = fit(subject, options, given)
        for _ in range(2):
            try:
                subject.entry.warm_up()
            except Exception as error:
                fail(subject, f"the warm-up raised {type(error).__name__}: {error}")
        after = fit(subject, options, given)
        same = torch.equal(before.lut, after.lut) and torch.equal(before.codes, after.codes)
        demand(subject, same, "the warm-up changed results")


def _demand_close(
    subject: Subject, options: BaseModel, a: ClusterProblem, b: ClusterProblem, text: str
) -> None:
    first, second = (fit(subject, options, given).lut.double() for given in (a, b))
    gap = float((first - second).abs().max())
    demand(subject, gap <= _CLOSE * float(a.points.abs().max()), f"{text} by up to {gap:.3g}")
