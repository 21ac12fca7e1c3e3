"""Behaviour that the config classes share: checked assignment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import ConfigDict

from palette_core._common.strict import StrictModel


class EditableConfig(StrictModel):
    """A config whose fields may be assigned to; an assignment that fails changes nothing.

    Configs are values: one that is put into another is copied.
    """

    model_config = ConfigDict(revalidate_instances="always")

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
