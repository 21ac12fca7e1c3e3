"""From names in a palettized folder to weights of a model, by transformers' own rules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)


@dataclass(frozen=True)
class Source:
    """A tensor of the folder.

    Attributes:
        name: in the folder.
        pattern: of the converter that takes it; None where it is the weight, under another name
            at most.
        is_palettized: whether it is.
    """

    name: str
    pattern: str | None
    is_palettized: bool


@dataclass(frozen=True)
class Recipe:
    """Recipe of a weight of the model: the tensors that it is made of.

    Attributes:
        target: its name in the model; the first, where a converter makes several.
        converter: of transformers, such as the one that stacks experts; None without one.
        sources: in the order in which converters take them. At least one is palettized.
    """

    target: str
    converter: Any
    sources: tuple[Source, ...]

    def make(
        self, read: Callable[[str], Tensor], model: Any, loading_info: Any = None
    ) -> dict[str, Tensor]:
        """Return the weights that come of the sources, by name.

        Args:
            read: returns a tensor of a source by its name.
            model: which is loaded.
            loading_info: takes what transformers has to say of errors.
        """
        if self.converter is None:
            return {self.target: read(self.sources[0].name)}
        # Where the model's converter collects tensors, copies of it do.
        converter = copy.deepcopy(self.converter)
        for source in self.sources:
            converter.add_tensor(
                self.target, source.name, source.pattern, _Later(read, source.name)
            )
        made = converter.convert(
            self.target, model=model, config=model.config, loading_info=loading_info
        )
        return {k: v[0] if isinstance(v, list) else v for k, v in made.items()}


@dataclass(frozen=True)
class _Later:
    read: Callable[[str], Tensor]
    name: str

    def __call__(self) -> Tensor:
        return self.read(self.name)


def recipes(
    palettized: Iterable[str], dense: Iterable[str], conversions: Sequence[Any], model: Any
) -> Iterator[Recipe]:
    """Yield what is to be made of palettized tensors, and of the dense ones that go with them.

    Args:
        palettized: names in the folder.
        dense: names of all others.
        conversions: what transformers does to names and tensors of a dense folder.
        model: with its weights on the meta device.
    """
    known = dict.fromkeys(dense, False) | dict.fromkeys(palettized, True)
    renamings = [item for item in conversions if isinstance(item, WeightRenaming)]
    converters = [item for item in conversions if isinstance(item, WeightConverter)]
    by_pattern = {pattern: item for item in converters for pattern in item.source_patterns}
    state: Mapping[str, Tensor] = model.state_dict()
    prefix = model.base_model_prefix
    found: dict[str, list[Source]] = {}
    for name in sorted(known, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], prefix, state)
        found.setdefault(target, []).append(Source(name, pattern, known[name]))
    for target, sources in found.items():
        if any(source.is_palettized for source in sources):
            pattern = sources[0].pattern
            converter = None if pattern is None else by_pattern[pattern]
            yield Recipe(target, converter, tuple(sources))
