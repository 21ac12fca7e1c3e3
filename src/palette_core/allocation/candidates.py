"""Candidate specs of every tensor, clustered, counted and judged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from palette_core.allocation.constraints import Limits
from palette_core.config.spec import PalettizationSpec
from palette_core.errors import AllocationError, IncompatibleShapeError, PlanError
from palette_core.planning import Plan, TensorPlan
from palette_core.planning.choose import (
    check_stored_form,
    clusterer_for,
    clusterer_options,
    lay_out,
    lut_quantizer_name,
)
from palette_core.plugins import Backend
from palette_core.plugins.catalog import Catalog

CandidateSpec = int | Mapping[str, Any]
"""Bits, or fields of a spec, such as ``{"n_bits": 4, "cluster_dim": 2}``."""


@dataclass(frozen=True)
class Judged:
    """A candidate with its price.

    Attributes:
        plan: the tensor's plan with the candidate's spec.
        bits: what the tensor takes: indices, tables, scales.
        loss: predicted by the metric.
    """

    plan: TensorPlan
    bits: int
    loss: float


def candidate_plans(
    plan: Plan,
    candidates: Sequence[CandidateSpec],
    catalog: Catalog,
    backend: Backend | None,
    limits: Mapping[str, Limits],
) -> dict[str, list[TensorPlan]]:
    """Return, for each tensor, the plans that fit its shape and that the backend takes.

    Args:
        plan: of the model, with the config's own specs; candidates change some of their fields.
        candidates: see `CandidateSpec`.
        catalog: the installed plug-ins.
        backend: drop what it refuses.
        limits: for each tensor, the bits it may have.

    Raises:
        AllocationError: no candidate is left for a tensor; the message has the reasons.
    """
    found: dict[str, list[TensorPlan]] = {}
    for tensor in plan:
        kept: dict[PalettizationSpec, TensorPlan] = {}
        reasons: dict[tuple[str, str], list[int]] = {}
        for bits, others in _allowed(tensor, candidates, limits[tensor.name]):
            made = _with(tensor, {**others, "n_bits": bits}, catalog, backend)
            if isinstance(made, str):
                reasons.setdefault((_in_words(others), made), []).append(bits)
            else:
                kept.setdefault(made.spec, made)
        if not kept:
            why = "; ".join(
                f"{', '.join(map(str, bits))} bits{others}: {reason}"
                for (others, reason), bits in reasons.items()
            )
            raise AllocationError(f"no candidate is left for {tensor.name} {tensor.shape}: {why}")
        found[tensor.name] = list(kept.values())
    return found


_Fields = dict[str, Any]


def _allowed(
    tensor: TensorPlan, candidates: Sequence[CandidateSpec], limits: Limits
) -> list[tuple[int, _Fields]]:
    """Return bits and other fields of the candidates that a tensor may have.

    Where it must have bits that none of them has, it gets them with all the other fields there
    are, so that a granularity that is offered holds for it too.

    Raises:
        AllocationError: none has as many bits as it needs at least.
    """
    rows = []
    for candidate in candidates:
        others = _fields(candidate)
        rows.append((int(others.pop("n_bits", tensor.spec.n_bits)), others))
    allowed = [row for row in rows if limits.allow(row[0])]
    if not allowed and limits.fixed is not None:
        each = [others for i, (_, others) in enumerate(rows) if others not in _others(rows[:i])]
        allowed = [(limits.fixed, others) for others in each]
    if not allowed:
        offered = ", ".join(map(str, sorted({bits for bits, _ in rows})))
        raise AllocationError(
            f"no candidate is left for {tensor.name}: minimum asks for at least {limits.minimum} "
            f"bits, and the candidates have {offered}; offer more, or lower the minimum"
        )
    return allowed


def _others(rows: Sequence[tuple[int, _Fields]]) -> list[_Fields]:
    return [others for _, others in rows]


def _in_words(others: _Fields) -> str:
    text = ", ".join(f"{name}={value!r}" for name, value in others.items())
    return f" with {text}" if text else ""


def checked(candidates: Sequence[CandidateSpec]) -> tuple[CandidateSpec, ...]:
    """Return candidates, each valid in itself.

    Raises:
        AllocationError: none, or one that is neither bits nor fields of a spec.
    """
    if not candidates:
        raise AllocationError("no candidates; give some, such as (2, 3, 4, 6, 8)")
    for candidate in candidates:
        try:
            PalettizationSpec(**_fields(candidate))
        except (ValidationError, TypeError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise AllocationError(
                f"candidate {candidate!r} is no spec: {reason}; give bits, or fields of a "
                "PalettizationSpec"
            ) from None
    return tuple(candidates)


def _fields(candidate: CandidateSpec) -> _Fields:
    if isinstance(candidate, Mapping):
        return dict(candidate)
    return {"n_bits": candidate}


def _with(
    tensor: TensorPlan, fields: _Fields, catalog: Catalog, backend: Backend | None
) -> TensorPlan | str:
    """Return the tensor's plan with other fields in its spec, or why there can be none."""
    try:
        spec = PalettizationSpec.model_validate({**tensor.spec.model_dump(), **fields})
        if tensor.resolution is not None and spec.cluster_dim > 1:
            return "cluster_dim > 1 needs enable_fast_kmeans_mode: false in the config"
        entry = clusterer_for(spec, catalog)
        vectors = tensor.vector_kmeans_config if spec.cluster_dim > 1 else None
        options = clusterer_options(entry, spec, vectors, catalog)
        made = replace(
            tensor,
            spec=spec,
            algorithm=entry.name,
            algorithm_options=options,
            vector_kmeans_config=vectors,
            lut_quantizer=lut_quantizer_name(spec.lut_qspec, catalog),
            layout=lay_out(tensor.shape, spec, tensor.axis),
        )
        check_stored_form(made.facts, catalog)
    except (IncompatibleShapeError, PlanError) as error:
        return str(error)
    except ValidationError as error:
        return str(error.errors()[0]["msg"])
    refusal = None if backend is None else backend.check_support(made.facts)
    return made if refusal is None else f"the backend refuses it: {refusal.reason}"


def elements(plans: Iterable[TensorPlan]) -> int:
    """Return how many weights there are in all tensors together."""
    return sum(math.prod(plan.shape) for plan in plans)
