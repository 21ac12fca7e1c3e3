"""Origin of a palette: the configuration, the plug-ins, algorithm and seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Source:
    """Configuration and plug-ins that made the palettes of a model.

    Attributes:
        config: JSON values that `KMeansPalettizerConfig.from_dict` takes.
        plugins: the distributions that took part, with their versions, by kind and name
            (``"clusterer:kmeans1d"``).
    """

    config: Mapping[str, Any]
    plugins: Mapping[str, str]


@dataclass(frozen=True)
class Origin:
    """Algorithm and seed that made one palette.

    Attributes:
        algorithm: name of the clusterer.
        seed: of the weight, derived from the configuration's.
        source: what made all palettes of its model.
    """

    algorithm: str
    seed: int
    source: Source


def as_json(origins: Mapping[str, Origin]) -> dict[str, Any]:
    """Return origins by name as JSON values, each source once."""
    sources: list[Source] = []
    tensors = {}
    for name, origin in origins.items():
        if origin.source not in sources:
            sources.append(origin.source)
        at = sources.index(origin.source)
        tensors[name] = {"algorithm": origin.algorithm, "seed": origin.seed, "source": at}
    listed = [{"config": dict(s.config), "plugins": dict(s.plugins)} for s in sources]
    return {"sources": listed, "tensors": tensors}


def from_json(value: Any) -> dict[str, Origin]:
    """Return what `as_json` was given.

    Raises:
        KeyError, TypeError, ValueError, IndexError, AttributeError: it is something else.
    """
    sources = [
        Source(_field(dict, each, "config"), _field(dict, each, "plugins"))
        for each in value.get("sources", ())
    ]
    return {
        name: Origin(
            _field(str, row, "algorithm"),
            _field(int, row, "seed"),
            sources[_field(int, row, "source")],
        )
        for name, row in value.get("tensors", {}).items()
    }


def _field(kind: type, row: Mapping[str, Any], key: str) -> Any:
    if type(row[key]) is not kind:
        raise TypeError(f"{key} is {type(row[key]).__name__}, expected {kind.__name__}")
    return row[key]
