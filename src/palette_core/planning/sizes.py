"""Sizes of palettes before there are any, and smaller ones for those that are too large."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from pydantic import ValidationError

from palette_core.config.spec import PalettizationSpec
from palette_core.errors import IncompatibleShapeError, PlanError
from palette_core.planning.choose import lay_out
from palette_core.planning.records import TensorPlan
from palette_core.storage.forms.lookup import DEFAULT_FORM
from palette_core.tensors.layout import BlockLayout
from palette_core.tensors.scales import scale_shape

_SMALL = 8 * 4096  # bits that nobody minds: palettes of tiny weights are larger as a rule
_SHOWN = 3


def bits_at_least(plan: TensorPlan, spec: PalettizationSpec, layout: BlockLayout) -> int:
    """Return the bits of a weight's tables and scales, and of its indices where these are dense."""
    entry, table = plan.dtype.itemsize * 8, 0
    if spec.lut_qspec is not None:
        entry, table = 8, 32
    bits = layout.n_blocks * (spec.n_entries * spec.cluster_dim * entry + table)
    if spec.is_scaled:
        width = (
            plan.dtype.itemsize if spec.scale_block_size is None else min(2, plan.dtype.itemsize)
        )
        bits += math.prod(scale_shape(plan.shape, plan.axis, spec.scale_block_size)) * width * 8
    if spec.stored_forms == (DEFAULT_FORM,):
        bits += math.prod(plan.shape) // spec.cluster_dim * spec.n_bits
    return bits


def large_palette_notes(plans: Iterable[TensorPlan]) -> list[str]:
    """Return a sentence about palettes that are larger than their weights, if there are any."""
    found = []
    for plan in plans:
        dense = math.prod(plan.shape) * plan.dtype.itemsize * 8
        bits = bits_at_least(plan, plan.spec, plan.layout)
        if bits > dense + _SMALL:
            found.append(_in_words(plan, bits, dense))
    if not found:
        return []
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return [f"palettes larger than their weights: {'; '.join(found[:_SHOWN])}{more}"]


def _in_words(plan: TensorPlan, bits: int, dense: int) -> str:
    count = math.prod(plan.shape)
    takes = f"{plan.name} {plan.shape} ({plan.rule}) takes {bits / count:.1f} bits per weight"
    instead = next(_smaller(plan, dense), None)
    if instead is None:
        return f"{takes} instead of {dense // count}; leave it dense, with null as its spec"
    fields, smaller = instead
    return f"{takes} instead of {dense // count}; {fields} would take {smaller / count:.1f}"


def _smaller(plan: TensorPlan, most: int) -> Iterator[tuple[dict[str, object], int]]:
    """Yield changes of the spec that make the palette smaller than ``most`` bits, small ones first.

    Larger groups come before one table for all, and that before fewer bits.
    """
    group = getattr(plan.spec.granularity, "group_size", None)
    sizes = [] if group is None else [group << step for step in range(1, 20)]
    whole: dict[str, object] = {"type": "per_tensor"}
    changes: list[dict[str, object]] = [
        {"granularity": {**plan.spec.granularity.model_dump(mode="json"), "group_size": size}}
        for size in sizes
        if size <= max(plan.shape)
    ]
    less = [n for n in (6, 4, 3, 2, 1) if n < plan.spec.n_bits]
    changes += [{"granularity": whole}, *({"granularity": whole, "n_bits": n} for n in less)]
    for change in changes:
        try:
            spec = PalettizationSpec.model_validate({**plan.spec.model_dump(), **change})
            layout = lay_out(plan.shape, spec, plan.axis, plan.name)
        except (ValidationError, IncompatibleShapeError, PlanError):
            continue
        bits = bits_at_least(plan, spec, layout)
        if bits < most:
            yield change, bits
