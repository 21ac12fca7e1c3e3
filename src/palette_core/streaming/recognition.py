"""Operation of a checkpoint's tensor, by rules that are data: ``rules.yaml`` beside this file."""

from __future__ import annotations

import functools
import re
from collections.abc import Set
from importlib import resources
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from palette_core.tensors.layout import Shape


class Recognition(BaseModel):
    """A rule of the file, which says what the fields are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    pattern: str = ""
    axes: frozenset[int] = frozenset()
    model_types: frozenset[str] = frozenset()
    operation: str | None = None
    axis: int | None = Field(default=None, ge=0)
    module_type: str = "torch.nn.Module"
    leave: str = ""

    @model_validator(mode="after")
    def _check_says_one_thing(self) -> Recognition:
        if bool(self.leave) == bool(self.operation):
            raise ValueError(f"rule {self.name!r} names either an operation or why there is none")
        re.compile(self.pattern)
        return self

    def fits(self, name: str, shape: Shape, model_types: Set[str]) -> bool:
        """Return whether this is the rule for a tensor, where no earlier one is."""
        return (
            (not self.axes or len(shape) in self.axes)
            and (not self.model_types or not self.model_types.isdisjoint(model_types))
            and re.search(self.pattern, name) is not None
        )


@functools.cache
def recognitions() -> tuple[Recognition, ...]:
    """Return the rules of the file, in its order; the last fits everything."""
    text = resources.files(__package__).joinpath("rules.yaml").read_text(encoding="utf-8")
    rules: Any = TypeAdapter(tuple[Recognition, ...]).validate_python(yaml.safe_load(text))
    return tuple(rules)


def recognize(name: str, shape: Shape, model_types: Set[str]) -> Recognition:
    """Return the first rule that fits a tensor."""
    return next(rule for rule in recognitions() if rule.fits(name, shape, model_types))
