"""Results of clustering: one record per weight, and the report of them all."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from palette_core.engine.run_facts import RunFacts
from palette_core.engine.views import LateView, WeightView
from palette_core.planning import (
    Coverage,
    DenseTensor,
    DenseWeights,
    Plan,
    SkippedTensor,
    TensorPlan,
)
from palette_core.storage.forms.lookup import DEFAULT_FORM, form_for, stored_bits
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
        late_view: distributions and tables, for reports; None of a weight without elements.
    """

    palettized: PalettizedTensor
    squared_error: float
    squared_norm: float
    seconds: float
    algorithm: str = ""
    objective_before: float | None = None
    objective_after: float | None = None
    zeros_lost: float = 0.0
    late_view: LateView | None = None


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
        squared_error: Σ (w − ŵ)².
        cluster_dim: values of an entry.
        lut_dtype: of the look-up tables, such as ``"float32"``.
        seed: of the weight, derived from the configuration's.
        late_view: what `view` is made of when somebody asks for it.
        output_error: ‖outputs − those of the dense weight‖² / ‖those‖² of the layer, on inputs
            that the palettized model gives it; None where it was not measured.
        loss_share: share of the model's output error that goes when this weight alone is dense;
            None where it was not measured.
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
    squared_error: float = 0.0
    cluster_dim: int = 1
    lut_dtype: str = ""
    seed: int = 0
    late_view: LateView | None = field(default=None, repr=False)
    output_error: float | None = None
    loss_share: float | None = None

    @property
    def view(self) -> WeightView | None:
        """Distributions and tables; None of a weight without elements."""
        return None if self.late_view is None else self.late_view.made

    def to_dict(self, *, views: bool = True) -> dict[str, Any]:
        """Return plain JSON values; an infinite ratio becomes None, a view on request too."""
        row = asdict(replace(self, late_view=None))
        del row["late_view"]
        row["view"] = self.view.to_dict() if views and self.view is not None else None
        row["snr_db"] = self.snr_db if math.isfinite(self.snr_db) else None
        return row

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make one of what `to_dict` returns; other values are left out."""
        names = [field.name for field in fields(cls) if field.name != "late_view"]
        row = {name: values[name] for name in names}
        snr = math.inf if row["snr_db"] is None else row["snr_db"]
        view = LateView.from_dict(values["view"])
        return cls(**{**row, "shape": tuple(row["shape"]), "snr_db": snr, "late_view": view})


@dataclass(frozen=True)
class Report:
    """All palettized weights, what stays dense, what share that is, and facts about the run.

    Attributes:
        tensors: the palettized weights.
        skipped: tensors that were asked for and stay dense.
        coverage: how much of the model is palettized.
        unasked: tensors that no rule asked for.
        run: timings, environment, files, measurements.
    """

    tensors: tuple[TensorReport, ...]
    skipped: tuple[SkippedTensor, ...]
    coverage: Coverage = field(default_factory=Coverage)
    unasked: tuple[DenseTensor, ...] = ()
    run: RunFacts = field(default_factory=RunFacts)

    @property
    def bits_per_palettized_weight(self) -> float:
        """Bits of indices, tables and scales, per palettized element."""
        elements = sum(math.prod(tensor.shape) for tensor in self.tensors)
        return 8 * sum(t.palettized_bytes for t in self.tensors) / elements if elements else 0.0

    @property
    def saved_bytes(self) -> int:
        """Bytes by which the palettes are smaller than the weights that they stand for."""
        return sum(row.dense_bytes - row.palettized_bytes for row in self.tensors)

    @property
    def dense(self) -> tuple[DenseWeights, ...]:
        """Weights that stay dense, those of the most elements first, and what would reach them."""
        return self.coverage.dense

    @property
    def left(self) -> tuple[SkippedTensor | DenseTensor, ...]:
        """Tensors that stay dense, whether they were asked for or not, the largest first."""
        both: tuple[SkippedTensor | DenseTensor, ...] = (*self.skipped, *self.unasked)
        return tuple(sorted(both, key=lambda item: -item.bytes))

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

    def to_dict(self, *, views: bool = True) -> dict[str, Any]:
        """Return plain JSON values; an infinite ratio becomes None.

        Args:
            views: with the distributions and tables of every weight, which are long.
        """
        rows = [tensor.to_dict(views=views) for tensor in self.tensors]
        return {
            "tensors": rows,
            "skipped": [asdict(s) for s in self.skipped],
            "unasked": [asdict(s) for s in self.unasked],
            "coverage": self.coverage.to_dict(),
            "run": self.run.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make one of what `to_dict` returns."""

        def dense(kind: Any, key: str) -> Any:
            return tuple(kind(**{**row, "shape": tuple(row["shape"])}) for row in values[key])

        return cls(
            tuple(TensorReport.from_dict(row) for row in values["tensors"]),
            dense(SkippedTensor, "skipped"),
            Coverage.from_dict(values["coverage"]),
            dense(DenseTensor, "unasked"),
            RunFacts.from_dict(values["run"]),
        )

    def to_html(self, title: str = "palette_core") -> str:
        """Return a page that shows all of this, with everything that it needs in it."""
        page: str = _drawn_by("palette_core.reporting.html.pages").report_page(self, title)
        return page

    def _repr_html_(self) -> str:
        """Return what notebooks show: the page, in a frame of its own."""
        frame: str = _drawn_by("palette_core.reporting.html.pages").framed(self.to_html())
        return frame

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame``, one row for each tensor, dense ones too.

        Raises:
            MissingFramesError: pandas is not installed.
        """
        return _drawn_by("palette_core.reporting.frames").frame(self)


def make_report(plan: Plan, results: Sequence[Clustered]) -> Report:
    """Combine a plan with its results, in the plan's order."""
    rows = tuple(tensor_report(p, r) for p, r in zip(plan, results, strict=True))
    return Report(rows, plan.skipped, plan.coverage, plan.dense)


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
        squared_error=result.squared_error,
        cluster_dim=plan.spec.cluster_dim,
        lut_dtype=str(result.palettized.lut.dtype).removeprefix("torch."),
        seed=plan.seed,
        late_view=result.late_view,
    )


def _drawn_by(module: str) -> Any:
    """Import a module of the room above that draws reports, when a report is to be drawn."""
    return importlib.import_module(module)


def snr_db(signal: float, noise: float) -> float:
    """Return 10·log10(signal / noise); infinite without noise."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
