"""What the three config classes share: checked assignment, and fields that do not exist here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, ModelWrapValidatorHandler, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from palette_core._common.strict import StrictModel


class EditableConfig(StrictModel):
    """A config whose fields may be assigned to; an assignment that fails changes nothing.

    Configs are values: one that is put into another is copied.
    """

    model_config = ConfigDict(revalidate_instances="always")

    activation_fields: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _drop_activation_fields(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Accept the documented configs of other compressions where they ask for nothing."""
        if not isinstance(data, Mapping):
            return handler(data)
        problems = []
        rest = dict(data)
        for name in cls.activation_fields:
            if name in rest and not _is_inactive(value := rest.pop(name)):
                message = (
                    f"{cls.__name__} has no {name}: palettization is weight-only; "
                    "say what happens to weights in op_state_spec"
                )
                kind = PydanticCustomError("weight_only", "{message}", {"message": message})
                problems.append(InitErrorDetails(type=kind, loc=(name,), input=value))
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return handler(rest)

    def __setattr__(self, name: str, value: Any) -> None:
        checked = self._checked({name: value})
        if name in type(self).model_fields:
            self._adopt(checked, name)

    def _checked(self, changes: Mapping[str, Any]) -> Self:
        """Return a checked copy with ``changes`` made.

        Raises:
            pydantic.ValidationError: the result would not be valid.
        """
        return self.model_validate(
            {name: getattr(self, name) for name in type(self).model_fields} | dict(changes)
        )

    def _adopt(self, checked: Self, *names: str) -> None:
        for name in names:
            self.__dict__[name] = checked.__dict__[name]
            self.__pydantic_fields_set__.add(name)

    def checked_copy(self) -> Self:
        """Return an independent copy, checked anew.

        The dictionaries of a config can be changed in place, which nothing checks; this does.

        Raises:
            pydantic.ValidationError: it was changed into something that is not valid.
        """
        return self._checked({})


def _is_inactive(value: Any) -> bool:
    return value is None or (
        isinstance(value, Mapping) and all(inner is None for inner in value.values())
    )
