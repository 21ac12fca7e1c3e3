"""Coverage: how much of a model is palettized, what stays dense, and the config that reaches it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from palette_core.config import yaml_io
from palette_core.config.problems import CONFIG_KEY

Config = dict[str, Any]
"""A part of a config as plain values, nested as in its file."""

_SHOWN = 0.95  # of what stays dense; the rest is in small pieces
_WORTH_TELLING = 1024  # elements


@dataclass(frozen=True)
class DenseWeights:
    """Weights that stay dense though a config could reach them, by what consumes them.

    Attributes:
        op_type: the operation that receives them, or a view of them; None where none did.
        module_type: type of the module that holds the first.
        names: of the weights.
        elements: of all together.
        config: the part of a config that reaches them; None where the reason is another, see
            `Plan.skipped`.
    """

    op_type: str | None
    module_type: str
    names: tuple[str, ...]
    elements: int
    config: Config | None = None


@dataclass(frozen=True)
class Coverage:
    """Elements of a model's weights: floating tensors of two axes or more, tied ones once.

    What a rule of the config leaves alone is not counted, nor what can have no palette, such as
    weights that are quantized already.

    Attributes:
        elements: of all weights.
        palettized: of those to be palettized.
        dense: the others, those of the most elements first.
        holding: what the config says of every module, as plain values.
    """

    elements: int = 0
    palettized: int = 0
    dense: tuple[DenseWeights, ...] = ()
    holding: Config = field(default_factory=dict)

    @property
    def is_low(self) -> bool:
        """Return whether most elements stay dense, and those are more than a handful."""
        dense = self.elements - self.palettized
        return dense > self.palettized and dense >= _WORTH_TELLING

    @property
    def config(self) -> Config:
        """The config that reaches what it can, as `KMeansPalettizerConfig.from_dict` takes it.

        It holds the entries to add to the present one, of the same place where there are any.
        """
        entries = merged(group.config for group in self._largest() if group.config is not None)
        if not entries.get(CONFIG_KEY, {}).keys() - {"global_config"}:
            return entries
        # Where modules are named and nothing is said of the others, those are left alone.
        return merged([{CONFIG_KEY: {"global_config": dict(self.holding)}}, entries])

    @property
    def yaml(self) -> str:
        """The same as lines of a file; empty where there is nothing to add."""
        return yaml_io.dump(self.config, None) if self.config else ""

    def sentence(self) -> str:
        """Return how much is palettized, and what is not."""
        share = 100 * self.palettized / self.elements if self.elements else 0.0
        said = (
            f"{share:.0f} % of the model's weights are palettized, {self.palettized:,} of "
            f"{self.elements:,} elements"
        )
        groups = [_in_words(group) for group in self._largest()]
        return f"{said}; dense stay {'; '.join(groups)}" if groups else said

    def advice(self) -> str:
        """Return the end of a sentence: the config that reaches the rest, if there is one."""
        return f". This reaches them, added to the config:\n\n{self.yaml}" if self.config else ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        rows = [{**vars(group), "names": list(group.names)} for group in self.dense]
        totals = {"elements": self.elements, "palettized": self.palettized}
        return {**totals, "dense": rows, "config": self.config, "holding": self.holding}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make one of what `to_dict` returns."""
        rows = (DenseWeights(**{**row, "names": tuple(row["names"])}) for row in values["dense"])
        return cls(values["elements"], values["palettized"], tuple(rows), values["holding"])

    def _largest(self) -> list[DenseWeights]:
        found, left = [], (1 - _SHOWN) * (self.elements - self.palettized)
        rest = self.elements - self.palettized
        for group in self.dense:
            if rest <= left:
                break
            found.append(group)
            rest -= group.elements
        return found


def _in_words(group: DenseWeights) -> str:
    more = f" and {len(group.names) - 1} more" if len(group.names) > 1 else ""
    taken = "that no operation took" if group.op_type is None else f"taken by {group.op_type!r}"
    return f"{group.elements:,} {taken} ({group.names[0]}{more})"


def merged(configs: Iterable[Mapping[str, Any]]) -> Config:
    """Return parts of a config put together, those of one place too."""
    out: Config = {}
    for config in configs:
        _merge(out, config)
    return out


def _merge(into: Config, more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, Mapping):
            _merge(into.setdefault(name, {}), value)
        else:
            into[name] = value
