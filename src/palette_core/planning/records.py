"""The plan: one checked record per tensor. Plain data, made and read without a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import BaseModel

from palette_core.config import PATSchedule, VectorKMeansConfig
from palette_core.config.spec import PalettizationSpec
from palette_core.model.graph import Owner
from palette_core.planning.coverage import Coverage
from palette_core.plugins import NoOptions, TensorFacts
from palette_core.plugins.checked.granularities import described
from palette_core.tensors.layout import BlockLayout, Shape

_TOLD = 50  # tensors, and rules, that are warned about one by one


@dataclass(frozen=True)
class TensorPlan:
    """Every decision about one weight, resolved and checked.

    Attributes:
        owners: every place where the tensor hangs in the model.
        shape: shape of the weight.
        dtype: its dtype.
        op_type: functional name of the consuming operation, or None (module-level rules).
        axis: the output-channel axis that the operation implies.
        spec: what to do.
        algorithm: name of the registered clusterer.
        algorithm_options: its options, validated; as the user wrote them, they are in the spec,
            and in ``vector_kmeans_config``.
        lut_quantizer: name of the registered LUT quantizer, or None.
        layout: the blocks.
        rule: the config entry that decided, as a path into the config.
        seed: derived from the config's seed and the name.
        resolution: decimal places of the boundary search, or None for the exact optimum.
        pat_schedule: when palettization starts in training, or None for at once.
        vector_kmeans_config: settings of the module for vectors, where there are any and this is
            one of vectors.
        sparse_overhead: bytes that the sparse form takes beside indices and mask, in the files of
            the backend that the model is prepared for.
    """

    owners: tuple[Owner, ...]
    shape: Shape
    dtype: torch.dtype
    op_type: str | None
    axis: int
    spec: PalettizationSpec
    algorithm: str
    layout: BlockLayout
    rule: str
    algorithm_options: BaseModel = field(default_factory=NoOptions)
    lut_quantizer: str | None = None
    seed: int = 0
    resolution: int | None = None
    pat_schedule: PATSchedule | None = None
    vector_kmeans_config: VectorKMeansConfig | None = None
    sparse_overhead: int = 0

    @property
    def name(self) -> str:
        """Fully qualified name at the first owner."""
        return self.owners[0].name

    @property
    def granularity(self) -> str:
        """Its granularity in a few characters, such as ``"16 × axis 0"``.

        Raises:
            PlanError: the granularity fails to describe itself.
        """
        text = described(self.spec.granularity, self.axis, self.name)
        if self.spec.scale_block_size is not None:
            return f"{text}, scale / {self.spec.scale_block_size}"
        return f"{text}, scale / channel" if self.spec.enable_per_channel_scale else text

    @property
    def facts(self) -> TensorFacts:
        """The part of the plan that export backends judge."""
        return TensorFacts(self.name, self.shape, self.dtype, self.op_type, self.layout, self.spec)


@dataclass(frozen=True)
class SkippedTensor:
    """A tensor that a rule asked to palettize, and that stays dense all the same: ``bytes``."""

    name: str
    shape: Shape
    reason: str
    rule: str
    bytes: int


@dataclass(frozen=True)
class DenseTensor:
    """A tensor of ``bytes`` that no rule asked for, and why."""

    name: str
    shape: Shape
    reason: str
    bytes: int


@dataclass(frozen=True)
class WeightCopies:
    """A weight that the files of several parts hold.

    Attributes:
        weight: its name.
        parts: names of those parts.
        bytes: what it takes in one of them; in a plan at least, where forms that depend on values
            may be chosen.
    """

    weight: str
    parts: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class Plan:
    """Decisions about every tensor of a model.

    Attributes:
        tensors: to be palettized, in the order of the model.
        skipped: asked for, and left dense with the reason.
        dense: not asked for.
        notes: rules of the config that have no effect, and what else it may not be meant to do,
            one sentence each.
        coverage: how much of the model is palettized, and what would reach the rest.
        written: names of buffers that the model writes when it runs, such as caches: states, which
            count as no weights, and which checkpoints leave out.
        copies: weights that several parts would hold, where it was made for parts.
        left_out: names of weights that no part would hold, likewise.
    """

    tensors: tuple[TensorPlan, ...]
    skipped: tuple[SkippedTensor, ...] = ()
    dense: tuple[DenseTensor, ...] = ()
    notes: tuple[str, ...] = ()
    coverage: Coverage = field(default_factory=Coverage)
    written: tuple[str, ...] = ()
    copies: tuple[WeightCopies, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of `prepare`: skipped tensors, notes, and where most of the model stays dense.

        One warning is of all skipped tensors. Of thousands of either, the first are told one by
        one, and the rest in one sentence.
        """
        asked = [
            f"{skipped.name} {skipped.shape} stays dense, though {skipped.rule} asks for it: "
            f"{skipped.reason}"
            for skipped in self.skipped
        ]
        rows = ["\n".join(_first(asked, "tensors stay dense"))] if asked else []
        told = rows + _first(self.notes, "rules have no effect")
        if not self.tensors and not told:
            told.append(
                f"nothing is palettized: no rule of the config asks for any of the model's "
                f"{len(self.dense)} tensors; make_plan tells the reason for each"
                + self.coverage.advice()
            )
        elif self.tensors and self.coverage.is_low and self.coverage.config:
            told.append(self.coverage.sentence() + self.coverage.advice())
        return tuple(told)

    def __iter__(self) -> Iterator[TensorPlan]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, name: str) -> TensorPlan:
        for plan in self.tensors:
            if name in {owner.name for owner in plan.owners}:
                return plan
        raise KeyError(name)


def _first(sentences: Sequence[str], kind: str) -> list[str]:
    rest = len(sentences) - _TOLD
    more = [f"{rest:,} more {kind}; the plan lists them all"] if rest > 0 else []
    return [*sentences[:_TOLD], *more]
