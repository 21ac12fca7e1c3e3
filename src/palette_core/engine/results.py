"""Results of clustering: one record per weight, and the report of them all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from palette_core.planning import Coverage, DenseWeights, Plan, SkippedTensor, TensorPlan
from palette_core.storage.forms.registry import DEFAULT_FORM, form_for, stored_bits
from palette_core.tensors.palettized import PalettizedTensor

_NAMED = 3


@dataclass(frozen=True)
class Clustered:
    """A palettized tensor, how well it stands for the weight, and what it took.

    Attributes:
        palettized: the result.
        squared_error: Σ (decoded − weight)², in float64.
        squared_norm: Σ weight².
        seconds: wall time.
        algorithm: name of the clusterer that ran: not the plan's where that needs moments and
            there were none.
        objective_before: what the algorithm lowers, at its plain start; None if it does not say.
        objective_after: the same at the result.
        zeros_lost: share of the weights that are zero and decode to something else, where many
            are zero and the spec says nothing of zeros.
    """

    palettized: PalettizedTensor
    squared_error: float
    squared_norm: float
    seconds: float
    algorithm: str = ""
    objective_before: float | None = None
    objective_after: float | None = None
    zeros_lost: float = 0.0


@dataclass(frozen=True)
class TensorReport:
    """One palettized weight.

    Attributes:
        name: fully qualified name of the first owner.
        shape: of the weight.
        n_bits: bits per index.
        granularity: in short, such as ``"16 × axis 0"``, with that of scales where there are any.
        algorithm: name of the clusterer.
        dense_bytes: size before.
        palettized_bytes: size after: packed indices, tables, scales.
        snr_db: signal-to-noise ratio, 10·log10(Σ w² / Σ (w − ŵ)²); infinite where exact.
        seconds: clustering time.
        rule: the config entry that decided.
        objective_before: what the algorithm lowers, at its plain start; None if it does not say.
        objective_after: the same at the result.
        vector_kmeans_config: settings of k-means for vectors that the config gives; None if none.
        stored_form: name of the form in which the weight is stored; its size is that form's.
        zeros_lost: share of the weights that were zero and decode to something else, where many
            were zero and the spec says nothing of zeros.
    """

    name: str
    shape: tuple[int, ...]
    n_bits: int
    granularity: str
    algorithm: str
    dense_bytes: int
    palettized_bytes: int
    snr_db: float
    seconds: float
    rule: str
    objective_before: float | None = None
    objective_after: float | None = None
    vector_kmeans_config: dict[str, Any] | None = None
    stored_form: str = DEFAULT_FORM
    zeros_lost: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; an infinite ratio becomes None."""
        row = asdict(self)
        row["snr_db"] = self.snr_db if math.isfinite(self.snr_db) else None
        return row

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make one of what `to_dict` returns; other values are left out."""
        row = {field.name: values[field.name] for field in fields(cls)}
        snr = math.inf if row["snr_db"] is None else row["snr_db"]
        return cls(**{**row, "shape": tuple(row["shape"]), "snr_db": snr})


@dataclass(frozen=True)
class Report:
    """All palettized weights, what was asked for but stays dense, and what share that is."""

    tensors: tuple[TensorReport, ...]
    skipped: tuple[SkippedTensor, ...]
    coverage: Coverage = field(default_factory=Coverage)

    @property
    def bits_per_palettized_weight(self) -> float:
        """Bits of indices, tables and scales, per palettized element."""
        elements = sum(math.prod(tensor.shape) for tensor in self.tensors)
        return 8 * sum(t.palettized_bytes for t in self.tensors) / elements if elements else 0.0

    @property
    def dense(self) -> tuple[DenseWeights, ...]:
        """Weights that stay dense, those of the most elements first, and what would reach them."""
        return self.coverage.dense

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of `prepare` once weights are clustered: zeros of pruning that tables lose."""
        rows = [row for row in self.tensors if row.zeros_lost]
        if not rows:
            return ()
        names = ", ".join(f"{row.name} ({row.zeros_lost:.0%})" for row in rows[:_NAMED])
        more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
        return (
            f"pruned weights lose zeros: {names}{more} of the weights were zero and are no longer; "
            "sparsity_detection_threshold: 0.3 or preserve_zero: true in their spec keeps them",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; an infinite ratio becomes None."""
        rows = [tensor.to_dict() for tensor in self.tensors]
        skipped = [asdict(s) for s in self.skipped]
        return {"tensors": rows, "skipped": skipped, "coverage": self.coverage.to_dict()}


def make_report(plan: Plan, results: Sequence[Clustered]) -> Report:
    """Combine a plan with its results, in the plan's order."""
    rows = tuple(tensor_report(p, r) for p, r in zip(plan, results, strict=True))
    return Report(rows, plan.skipped, plan.coverage)


def updated_report(report: Report, results: Iterable[tuple[TensorPlan, Clustered]]) -> Report:
    """Put new rows in the place of old ones of the same names."""
    rows = {row.name: row for row in (tensor_report(p, r) for p, r in results)}
    return replace(report, tensors=tuple(rows.get(row.name, row) for row in report.tensors))


def tensor_report(plan: TensorPlan, result: Clustered) -> TensorReport:
    """Return the row of one weight."""
    vectors = plan.vector_kmeans_config
    return TensorReport(
        name=plan.name,
        shape=plan.shape,
        n_bits=plan.spec.n_bits,
        granularity=plan.granularity,
        algorithm=result.algorithm or plan.algorithm,
        dense_bytes=result.palettized.dense_size_in_bits() // 8,
        palettized_bytes=math.ceil(stored_bits(result.palettized, plan.spec.stored_form) / 8),
        snr_db=snr_db(result.squared_norm, result.squared_error),
        seconds=result.seconds,
        rule=plan.rule,
        zeros_lost=result.zeros_lost,
        stored_form=form_for(result.palettized, plan.spec.stored_form),
        objective_before=result.objective_before,
        objective_after=result.objective_after,
        vector_kmeans_config=None if vectors is None else vectors.model_dump(),
    )


def snr_db(signal: float, noise: float) -> float:
    """Return 10·log10(signal / noise); infinite without noise."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
