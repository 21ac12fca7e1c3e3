"""The common part of all records by which plug-ins are registered."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

INTERFACE_VERSION = 1


class NoOptions(BaseModel):
    """The options of a plug-in that has none."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, kw_only=True)
class PluginEntry:
    """Declaration that every kind of plug-in makes.

    Attributes:
        name: what users write in a config; lower case, unique within its kind.
        summary: one line for ``palette plugins``.
        interface: the interface version the plug-in was written for (`INTERFACE_VERSION`).
        options: a frozen pydantic model with ``extra="forbid"``.
    """

    takes_options: ClassVar[bool] = True
    """Whether there is a place where users write options of this kind."""

    name: str
    summary: str
    interface: int
    options: type[BaseModel] = NoOptions

    def claims(self) -> frozenset[str]:
        """Return by what the entry is picked, in words: ``"the name 'its_name'"``.

        What a built-in entry claims, nobody else may.
        """
        return frozenset({f"the name {self.name!r}"})

    def check(self) -> None:
        """Refuse what the kind's own fields must not hold: annotations are not enforced.

        Raises:
            TypeError: naming the field.
            ValueError: naming the field.
        """
        factory = getattr(self, "factory", print)
        if not callable(factory):
            raise TypeError(f"factory of {self.name!r} must be callable, got {factory!r}")
        for field in fields(self):
            flag = getattr(self, field.name)
            if field.type == "bool" and type(flag) is not bool:
                raise TypeError(f"{field.name} of {self.name!r} must be a bool, got {flag!r}")
        if not self.takes_options and self.options is not NoOptions:
            raise TypeError(f"options of {self.name!r} must be NoOptions: its kind has none")
