"""Candidate specs of every tensor, clustered, counted and judged."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from palette_core.errors import AllocationError, IncompatibleShapeError, PlanError
from palette_core.interfaces import Backend
from palette_core.planning import Plan, TensorPlan
from palette_core.planning.choose import clusterer_for, lay_out, lut_quantizer_name
from palette_core.plugins import Catalog, validate_options
from palette_core.spec import PalettizationSpec

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
    allowed: Iterator[tuple[TensorPlan, Collection[int] | None]] | None = None,
) -> dict[str, list[TensorPlan]]:
    """Return, for each tensor, the plans that fit its shape and that the backend takes.

    Args:
        plan: of the model, with the config's own specs; candidates change some of their fields.
        candidates: see `CandidateSpec`.
        catalog: the installed plug-ins.
        backend: drop what it refuses.
        allowed: for each tensor, the bits it may have; None for any.

    Raises:
        AllocationError: no candidate is left for a tensor; the message has the reasons.
    """
    found: dict[str, list[TensorPlan]] = {}
    for tensor, bits in allowed or ((t, None) for t in plan):
        kept: dict[PalettizationSpec, TensorPlan] = {}
        reasons = []
        for candidate in _for(tensor, candidates, bits):
            made = _with(tensor, candidate, catalog, backend)
            if isinstance(made, str):
                reasons.append(made)
            elif bits is not None and made.spec.n_bits not in bits:
                reasons.append(f"{made.spec.n_bits} bits are not allowed here")
            else:
                kept.setdefault(made.spec, made)
        if not kept:
            raise AllocationError(
                f"no candidate is left for {tensor.name} {tensor.shape}: {'; '.join(reasons)}"
            )
        found[tensor.name] = list(kept.values())
    return found


def _for(
    tensor: TensorPlan, candidates: Sequence[CandidateSpec], bits: Collection[int] | None
) -> list[CandidateSpec]:
    """Return candidates, and one more where a tensor must have bits that none of them has."""
    have = {_fields(c).get("n_bits", tensor.spec.n_bits) for c in candidates}
    more = bits if bits is not None and len(bits) == 1 else ()
    return [*candidates, *(b for b in more if b not in have)]


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


def _fields(candidate: CandidateSpec) -> dict[str, Any]:
    if isinstance(candidate, Mapping):
        return dict(candidate)
    return {"n_bits": candidate}


def _with(
    tensor: TensorPlan, candidate: CandidateSpec, catalog: Catalog, backend: Backend | None
) -> TensorPlan | str:
    """Return the tensor's plan with other fields in its spec, or why there can be none."""
    fields = _fields(candidate)
    try:
        spec = PalettizationSpec.model_validate({**tensor.spec.model_dump(), **fields})
        if tensor.resolution is not None and spec.cluster_dim > 1:
            return "cluster_dim > 1 needs enable_fast_kmeans_mode: false in the config"
        entry = clusterer_for(spec, catalog)
        options = validate_options(entry, "clusterer", spec.algorithm_options)
        made = replace(
            tensor,
            spec=spec,
            algorithm=entry.name,
            algorithm_options=options.model_dump(mode="json"),
            lut_quantizer=lut_quantizer_name(spec.lut_qspec, catalog),
            layout=lay_out(tensor.shape, spec, tensor.axis),
        )
    except (IncompatibleShapeError, PlanError) as error:
        return f"{fields}: {error}"
    except ValidationError as error:
        return f"{fields}: {error.errors()[0]['msg']}"
    refusal = None if backend is None else backend.refuses(made.facts)
    return made if refusal is None else f"{fields}: the backend refuses it: {refusal.reason}"


def elements(plans: Iterable[TensorPlan]) -> int:
    """Return how many weights there are in all tensors together."""
    return sum(math.prod(plan.shape) for plan in plans)
