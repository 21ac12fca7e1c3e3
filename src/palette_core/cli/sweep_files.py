"""Files that say what to sweep: a model, a configuration, and a grid of fields of its specs."""

from __future__ import annotations

import copy
import itertools
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from palette_core._common.strict import FrozenModel
from palette_core.cli.allocating import read_granularity
from palette_core.config import KMeansPalettizerConfig, problems, yaml_nodes
from palette_core.config.problems import CONFIG_KEY
from palette_core.config.spec import PalettizationSpec
from palette_core.errors import PaletteError, did_you_mean

_SPECS = ("op_state_spec", "module_state_spec")
_LONGEST_NAME = 80


class SweepError(PaletteError, ValueError):
    """A file is no sweep, or nothing of it can be done."""


class Sweep(FrozenModel):
    """Sweep: a model, a configuration, and the values to try.

    Attributes:
        model: FACTORY of the model, as for ``palette palettize``.
        grid: values to try, by field of `PalettizationSpec`; granularities also in words.
        inputs: example inputs as ``dtype[shape]``, for a FACTORY that returns only a model.
        config: what the grid changes, as a path or as it stands in such a file; None is 4 bits per
            tensor.
        calibration: FACTORY of calibration batches, for algorithms that look at inputs.
    """

    model: str
    grid: dict[str, list[Any]] = Field(min_length=1)
    inputs: tuple[str, ...] = ()
    config: str | dict[str, Any] | None = None
    calibration: str | None = None

    @field_validator("grid")
    @classmethod
    def _check_grid(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        fields = PalettizationSpec.model_fields
        for name, values in grid.items():
            if name not in fields:
                raise ValueError(
                    f"{name!r} is no field of a spec{did_you_mean(name, fields)}; there are "
                    f"{', '.join(fields)}"
                )
            if not values:
                raise ValueError(f"{name!r} has no values to try")
        return grid

    @classmethod
    def read(cls, path: Path) -> Sweep:
        """Read a file.

        Raises:
            FileNotFoundError: there is none.
            ConfigError: it is not YAML.
            SweepError: one line for each problem.
        """
        value, root = yaml_nodes.read(str(path), path.read_bytes())
        if not isinstance(value, dict):
            raise SweepError(f"{path}: expected a mapping with the keys model and grid")
        try:
            return cls.model_validate(value)
        except ValidationError as error:

            def locate(parts: Any) -> str:
                return f"{path}:{yaml_nodes.line_of(root, parts)}: "

            raise SweepError("\n".join(problems.lines(error, (), locate))) from None

    def points(self) -> list[Point]:
        """Return the points of the grid, the last field of it changing fastest."""
        base = KMeansPalettizerConfig.of(self.config).to_dict()
        combined = [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]
        names = [_name(fields) for fields in combined]
        return [
            Point(
                name if names.count(name) == 1 else f"{name}-{_sum(fields)}",
                fields,
                _changed(base, {key: _meant(key, value) for key, value in fields.items()}),
            )
            for name, fields in zip(names, combined, strict=True)
        ]


@dataclass(frozen=True)
class Point:
    """Point of a grid.

    Attributes:
        name: its values in words, which a file can be called by.
        fields: as the file has them.
        config: of the run, as plain values that need not be right.
    """

    name: str
    fields: Mapping[str, Any]
    config: dict[str, Any]


def _name(fields: Mapping[str, Any]) -> str:
    """Return the values of a point in a name that files can have."""
    text = "_".join(_in_words(value) for value in fields.values())
    plain = re.sub(r"[^\w.@+-]+", "-", text).strip("._-")
    return plain if len(plain) <= _LONGEST_NAME else f"{plain[:_LONGEST_NAME]}-{_sum(fields)}"


def _sum(fields: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(repr(dict(fields)).encode()):08x}"


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(_in_words(part) for part in value.values())
    return "none" if value is None else str(value)


def _meant(name: str, value: Any) -> Any:
    """Return a value of a field that may have been written in a word."""
    if name == "granularity" and isinstance(value, (int, str)):
        return read_granularity(str(value))
    if name == "lut_qspec" and isinstance(value, str):
        return {"dtype": value}
    return value


def _changed(base: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with fields of all its specs changed."""
    changed: dict[str, Any] = copy.deepcopy(dict(base))
    if "algorithm" in fields:  # options are those of another one
        fields = {"algorithm_options": {}, **fields}
    _change(changed[CONFIG_KEY], fields)
    return changed


def _change(part: Any, fields: Mapping[str, Any]) -> None:
    if not isinstance(part, dict):
        return
    for key, value in part.items():
        if key in _SPECS and isinstance(value, dict):
            for spec in value.values():
                if spec is not None:
                    spec.update(copy.deepcopy(dict(fields)))
        else:
            _change(value, fields)
