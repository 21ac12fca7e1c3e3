"""Base classes of the data models: strict about fields, frozen where shared, never subclassed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_core.core_schema import ErrorType

from palette_core.errors import did_you_mean, shortened

_COMPARED = 100  # unknown fields of one model that near ones are looked for


@dataclass(frozen=True)
class Foreign:
    """A field that configs for other programs have, accepted where it asks for nothing new.

    Attributes:
        asks_nothing: whether a value, beside the other fields, means what happens anyway.
        reason: what to tell where it does not.
    """

    asks_nothing: Callable[[Any, Mapping[str, Any]], bool]
    reason: str


class StrictModel(BaseModel):
    """A pydantic model whose unknown fields are errors that name the nearest known one.

    A subclass marked ``typing.final`` cannot be subclassed: trying raises ``TypeError``.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    foreign_fields: ClassVar[Mapping[str, Foreign]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        for base in cls.__mro__[1:]:
            if base.__dict__.get("__final__", False):
                raise TypeError(f"{cls.__name__} cannot subclass {base.__name__}, which is final")
        super().__init_subclass__(**kwargs)

    @model_validator(mode="wrap")
    @classmethod
    def _name_nearest_field(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if cls.foreign_fields and isinstance(data, Mapping):
            data = cls._without_foreign(data)
        try:
            return handler(data)
        except ValidationError as error:
            found = error.errors(include_url=False)
            if not any(problem["type"] == "extra_forbidden" for problem in found):
                raise
            problems = [
                cls._explained(dict(problem), compare=at < _COMPARED)
                for at, problem in enumerate(found)
            ]
            raise ValidationError.from_exception_data(error.title, problems) from None

    @classmethod
    def _without_foreign(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Drop foreign fields that ask for nothing; refuse the others."""
        present = [name for name in cls.foreign_fields if name in data]
        problems = [
            InitErrorDetails(
                type=_verbatim("foreign", f"{cls.__name__} has no {name}: {field.reason}"),
                loc=(name,),
                input=data[name],
            )
            for name, field in cls.foreign_fields.items()
            if name in data and not field.asks_nothing(data[name], data)
        ]
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return {key: value for key, value in data.items() if key not in present}

    @classmethod
    def _explained(cls, problem: dict[str, Any], *, compare: bool) -> InitErrorDetails:
        location = problem["loc"]
        if problem["type"] == "extra_forbidden" and len(location) == 1:
            known = list(cls.model_fields)
            near = did_you_mean(location[0], known) if compare else ""
            hint = near or "; fields are " + ", ".join(known)
            name = shortened(repr(location[0]))
            message = f"unknown field {name} in {cls.__name__}{hint}"
            kind: str | PydanticCustomError = _verbatim("unknown_field", message)
        elif problem["type"] == "extra_forbidden" or problem["type"] not in _pydantic_types():
            kind = _verbatim(problem["type"], problem["msg"])
        else:
            kind = problem["type"]
        details = InitErrorDetails(type=kind, loc=location, input=problem["input"])
        if isinstance(kind, str) and "ctx" in problem:
            details["ctx"] = problem["ctx"]
        return details


@lru_cache
def _pydantic_types() -> frozenset[str]:
    return frozenset(get_args(ErrorType))


def _verbatim(kind: Any, message: str) -> PydanticCustomError:
    return PydanticCustomError(kind, "{message}", {"message": message})


def plain_json(value: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of ``value`` made of what JSON has, so that it survives any file.

    Raises:
        ValueError: something in it is not plain: an object, NaN, infinity.
    """
    try:
        copy: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"must hold plain JSON values: {error}") from None
    return copy


Options = Annotated[dict[str, Any], AfterValidator(plain_json)]
"""Options of a plug-in: its own model checks them when the plan is made."""


class FrozenModel(StrictModel):
    """A strict model that cannot be assigned to and hashes by value."""

    model_config = ConfigDict(frozen=True)

    def __hash__(self) -> int:
        return hash((type(self), _hashable(self.__dict__)))


def _hashable(value: Any) -> Any:
    """Return something hashable that is equal for equal values, whatever the order of keys."""
    if isinstance(value, Mapping):
        return frozenset((key, _hashable(inner)) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_hashable(inner) for inner in value)
    return value
