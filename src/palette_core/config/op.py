"""Rules for the state tensors of operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, final

from pydantic import BeforeValidator, Field

from palette_core._common.strict import Foreign
from palette_core.config import foreign
from palette_core.config.base import EditableConfig
from palette_core.config.patterns import check_pattern
from palette_core.config.spec import PalettizationSpec, default_weight_palettization_spec
from palette_core.operations import canonical_op_type

EVERY_STATE = "*"
"""The state key that stands for every state without a key of its own."""


def _check_state_key(key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError(f"state keys are names such as 'weight', or '*', got {key!r}")
    if not key or "." in key:
        raise ValueError(
            f"state key {key!r}: states are named within their module, as in 'weight', or '*'"
        )
    return key


def _none_is_off(value: Any) -> Any:
    return {EVERY_STATE: None} if value is None else value


def none_is_empty(value: Any) -> Any:
    """Read None as an empty mapping."""
    return {} if value is None else value


def reject_twins(canonical: Callable[[Any], str]) -> Callable[[Any], Any]:
    """Return a validator that refuses a mapping with two spellings of one key."""

    def check(value: Any) -> Any:
        seen: dict[str, Any] = {}
        for key in value if isinstance(value, Mapping) else ():
            try:
                name = canonical(key)
            except (TypeError, ValueError):
                continue  # reported with its own place, by the validator of keys
            if name in seen:
                raise ValueError(f"{seen[name]!r} and {key!r} both name {name!r}; keep one")
            seen[name] = key
        return value

    return check


StateKey = Annotated[str, BeforeValidator(_check_state_key)]
States = dict[StateKey, PalettizationSpec | None]
OpStates = Annotated[States, BeforeValidator(_none_is_off)]
ModuleStates = Annotated[States, BeforeValidator(none_is_empty)]


def default_states() -> dict[str, PalettizationSpec | None]:
    """Return the documented default: 4 bits for ``weight`` and ``in_proj_weight``."""
    return states_of(default_weight_palettization_spec())


def states_of(spec: PalettizationSpec) -> dict[str, PalettizationSpec | None]:
    """Return state specs that apply ``spec`` to the states that the defaults cover."""
    return {"weight": spec, "in_proj_weight": spec}


class WeightOnlyConfig(EditableConfig):
    """A config of operations, which the reference's quantization gives inputs and outputs too."""

    @property
    def op_input_spec(self) -> dict[str, None]:
        """Nothing: palettization is of weights alone."""
        return {}

    @property
    def op_output_spec(self) -> dict[str, None]:
        """Nothing: palettization is of weights alone."""
        return {}


@final
class OpKMeansPalettizerConfig(WeightOnlyConfig):
    """Rules for the states (parameters, buffers, constants) of one kind of operation.

    Attributes:
        op_state_spec: by state name, or ``"*"`` for every state; None as a value leaves the
            state alone. Omitted, 4 bits for ``weight`` and ``in_proj_weight``; None is
            ``{"*": None}``; ``{}`` names nothing.
    """

    foreign_fields: ClassVar[Mapping[str, Foreign]] = foreign.of_operations

    op_state_spec: OpStates = Field(default_factory=default_states)

    if TYPE_CHECKING:

        def __init__(
            self, *, op_state_spec: Mapping[str, PalettizationSpec | None] | None = ...
        ) -> None: ...

    @classmethod
    def disabled(cls) -> Self:
        """Return the config that leaves every state alone."""
        return cls(op_state_spec=None)


def _none_is_disabled_op(value: Any) -> Any:
    return OpKMeansPalettizerConfig.disabled() if value is None else value


OpEntry = Annotated[OpKMeansPalettizerConfig, BeforeValidator(_none_is_disabled_op)]
OpTypes = Annotated[
    dict[Annotated[str, BeforeValidator(canonical_op_type)], OpEntry],
    BeforeValidator(reject_twins(canonical_op_type)),
    BeforeValidator(none_is_empty),
]
OpNames = Annotated[
    dict[Annotated[str, BeforeValidator(check_pattern)], OpEntry], BeforeValidator(none_is_empty)
]
