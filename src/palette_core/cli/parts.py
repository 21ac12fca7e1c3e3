"""Parts of a model to export, out of a small YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from palette_core.cli.axes import read_dynamic
from palette_core.cli.factories import FactoryError, Loaded
from palette_core.cli.functions import Called, Named, made_function, read_yaml
from palette_core.config import problems
from palette_core.plugins.export_requests import AnyPart, ExportPart


@final
class _Part(Called, Named):
    modules: str | list[str] | None = None


def _as_part(given: object) -> object:
    """Return a part that is no more than names of modules as one that says so."""
    return {"modules": given} if isinstance(given, (str, list)) else given


@final
class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    parts: dict[str, Annotated[_Part, BeforeValidator(_as_part)]] = Field(min_length=1)


@dataclass(frozen=True)
class PartsFile:
    """Content of a file of parts, checked but for what it says about the model."""

    path: Path
    content: _Content

    def parts(self, loaded: Loaded) -> dict[str, AnyPart]:
        """Return ``parts`` of `KMeansPalettizer.export`.

        Raises:
            FactoryError: a part is of nothing, or a module, an input or an axis is not there; with
                file, part and field.
        """
        return {name: self._part(name, given, loaded) for name, given in self.content.parts.items()}

    def _part(self, name: str, given: _Part, loaded: Loaded) -> AnyPart:
        where = f"{self.path}: {problems.dotted(('parts', name))}"
        if (given.modules is None) is (given.module is None):
            raise FactoryError(
                f"{where}: give either modules, names of the model's that follow each other, or "
                "module, one of your own as file.py:callable"
            )
        if given.modules is None:
            return made_function(where, given, given.names(), loaded)
        if given.inputs is not None:
            raise FactoryError(f"{where}.inputs: those of modules are found by running the model")
        try:
            axes: Mapping[str, Any] = read_dynamic(given.axes, "axis")
        except FactoryError as error:
            raise FactoryError(f"{where}.dynamic: {error}") from None
        return ExportPart(given.modules, axes or None, **given.names())


def read_parts(path: Path) -> PartsFile:
    """Read a file of parts.

    Raises:
        ConfigError: it is no YAML of that kind; one line for each problem, with its line.
        FileNotFoundError: there is no such file.
    """
    return PartsFile(path, read_yaml(path, _Content, "parts"))
