"""Rules for everything inside a module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Self, final

from pydantic import Field, model_validator

from palette_core._common.strict import Foreign
from palette_core.config import foreign
from palette_core.config.base import EditableConfig
from palette_core.config.op import (
    ModuleStates,
    OpKMeansPalettizerConfig,
    OpNames,
    OpStates,
    OpTypes,
    WeightOnlyConfig,
    default_states,
)
from palette_core.config.presets import Presets
from palette_core.config.spec import PalettizationSpec
from palette_core.config.vectors import VectorKMeansConfig


@final
class PATSchedule(EditableConfig):
    """Start of palettization during palettization-aware training.

    Attributes:
        enable_fake_palettize: the training step, counted from 0, at which weights are
            clustered and from which on they are palettized.
    """

    enable_fake_palettize: int = Field(ge=0)


@final
class ModuleKMeansPalettizerConfig(WeightOnlyConfig):
    """Rules for the states of everything inside a module.

    For one tensor, from the most to the least specific: ``module_state_spec``, the matching entry
    of ``op_name_config``, that of ``op_type_config``, ``op_state_spec``.

    Attributes:
        op_state_spec: for every supported operation, by state name, or ``"*"`` for every state;
            None as a value leaves the state alone. Omitted, 4 bits for ``weight`` and
            ``in_proj_weight``; None is ``{"*": None}``; ``{}`` names nothing.
        op_type_config: by operation type, such as ``"linear"`` or ``"aten.linear.default"``,
            kept under its functional name; None as a value leaves those operations alone. ``"*"``
            is every operation whose weights are matrices, for weights of two axes or more.
        op_name_config: by regular expression for operation names; None as a value leaves those
            operations alone.
        module_state_spec: by state name, for the states of the module itself, whatever
            operation consumes them.
        enable_fast_kmeans_mode: search cluster boundaries among rounded values. Not with
            ``cluster_dim`` above 1 in ``op_state_spec``.
        rounding_precision: decimal places of that rounding, 1 to 45, where the smallest float32 is.
        pat_schedule: when palettization begins in training; None means at once.
        vector_kmeans_config: settings of k-means for vectors, for modules with a spec of
            ``cluster_dim`` above 1; ``algorithm_options`` of a spec come before them. None keeps
            the defaults of the algorithm.
    """

    foreign_fields: ClassVar[Mapping[str, Foreign]] = foreign.of_modules
    presets: ClassVar[Presets[ModuleKMeansPalettizerConfig]]

    op_state_spec: OpStates = Field(default_factory=default_states)
    op_type_config: OpTypes = Field(default_factory=dict)
    op_name_config: OpNames = Field(default_factory=dict)
    module_state_spec: ModuleStates = Field(default_factory=dict)
    enable_fast_kmeans_mode: bool = True
    rounding_precision: int = Field(default=4, gt=0, le=45)
    pat_schedule: PATSchedule | None = None
    vector_kmeans_config: VectorKMeansConfig | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            op_state_spec: Mapping[str, PalettizationSpec | None] | None = ...,
            op_type_config: Mapping[str, OpKMeansPalettizerConfig | None] | None = ...,
            op_name_config: Mapping[str, OpKMeansPalettizerConfig | None] | None = ...,
            module_state_spec: Mapping[str, PalettizationSpec | None] | None = ...,
            enable_fast_kmeans_mode: bool = ...,
            rounding_precision: int = ...,
            pat_schedule: PATSchedule | None = ...,
            vector_kmeans_config: VectorKMeansConfig | None = ...,
        ) -> None: ...

    @model_validator(mode="after")
    def _check_fast_mode(self) -> Self:
        for state, spec in self.op_state_spec.items():
            if self.enable_fast_kmeans_mode and spec is not None and spec.cluster_dim > 1:
                raise ValueError(
                    "enable_fast_kmeans_mode is not supported when cluster_dim > 1, got "
                    f"cluster_dim={spec.cluster_dim} for state {state!r}; "
                    "set enable_fast_kmeans_mode=False"
                )
        return self

    @model_validator(mode="after")
    def _check_vectors(self) -> Self:
        if self.vector_kmeans_config is not None and not any(
            spec is not None and spec.cluster_dim > 1 for spec in self.specs()
        ):
            raise ValueError(
                "vector_kmeans_config only applies to vector palettization, and no spec of the "
                "module has cluster_dim > 1; leave it out, or set cluster_dim"
            )
        return self

    @classmethod
    def disabled(cls) -> Self:
        """Return the config that leaves everything alone."""
        return cls(op_state_spec=None)

    @property
    def module_input_spec(self) -> dict[str, None]:
        """Nothing: palettization is of weights alone."""
        return {}

    @property
    def module_output_spec(self) -> dict[str, None]:
        """Nothing: palettization is of weights alone."""
        return {}

    @property
    def is_disabled(self) -> bool:
        """Return whether nothing in it asks for palettization."""
        return all(spec is None for spec in self.specs())

    def specs(self) -> Iterator[PalettizationSpec | None]:
        """Yield what is asked for, None where a state is to be left alone."""
        yield from self.op_state_spec.values()
        yield from self.module_state_spec.values()
        for op in (*self.op_type_config.values(), *self.op_name_config.values()):
            yield from op.op_state_spec.values()


ModuleKMeansPalettizerConfig.presets = Presets(
    lambda states, operations: ModuleKMeansPalettizerConfig(
        op_state_spec=states, op_type_config=operations
    )
)
