"""Palette sites: each palette of a model, and every place where it stands for a weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar, cast, final, overload

from torch import Tensor, nn
from torch.nn.utils import parametrize

from palette_core._common.modules import all_names
from palette_core.model.parametrization import chain_input, parametrizations
from palette_core.storage.packed_weight import PaletteModule

P_co = TypeVar("P_co", bound=PaletteModule, covariant=True)


class Place(NamedTuple):
    """One place where a weight hangs.

    Attributes:
        name: fully qualified.
        module: its owner.
        state: its name in the owner.
    """

    name: str
    module: nn.Module
    state: str

    @property
    def chain(self) -> parametrize.ParametrizationList:
        """Chain that computes the weight: the dense original, then palettes and others."""
        return cast("parametrize.ParametrizationList", parametrizations(self.module)[self.state])


@final
@dataclass(frozen=True)
class PaletteSite(Generic[P_co]):
    """A palette of a model, and where it stands.

    Attributes:
        palette: the module that makes the weight.
        places: where the weight hangs, in the order of ``model.named_modules``. A tied weight
            hangs in several places, and a module that hangs in several is a place for each.
    """

    palette: P_co
    places: tuple[Place, ...]

    @property
    def name(self) -> str:
        """The weight's first name, which plans, reports and files use."""
        return self.places[0].name

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of the weight, the first one first."""
        return tuple(place.name for place in self.places)

    @property
    def module(self) -> nn.Module:
        """The weight's first owner."""
        return self.places[0].module

    @property
    def state(self) -> str:
        """The weight's name in its first owner."""
        return self.places[0].state

    @property
    def original(self) -> object:
        """The dense original, or None where the weight is computed of several tensors."""
        return getattr(self.places[0].chain, "original", None)

    def dense(self) -> Tensor:
        """Return what the palette receives: the dense weight, for autograd to follow."""
        return chain_input(self.module, self.state, self.palette)


@overload
def palette_sites(model: nn.Module) -> list[PaletteSite[PaletteModule]]: ...
@overload
def palette_sites(model: nn.Module, kind: type[P_co]) -> list[PaletteSite[P_co]]: ...
def palette_sites(model: nn.Module, kind: type[Any] = PaletteModule) -> list[PaletteSite[Any]]:
    """Return the palettes of a model, each once, with every place where it stands.

    Args:
        model: prepared, finalized, or neither: then there are none.
        kind: leave out palettes of other types.
    """
    found: dict[PaletteModule, list[Place]] = {}
    for place in _parametrized(model):
        for item in place.chain:
            if isinstance(item, kind):
                found.setdefault(item, []).append(place)
    return [PaletteSite(item, tuple(places)) for item, places in found.items()]


def _parametrized(model: nn.Module) -> Iterator[Place]:
    for prefix, module in all_names(model):
        # What most modules lack is asked for first: torch looks for an attribute.
        if "parametrizations" in module._modules and parametrize.is_parametrized(module):
            for state in parametrizations(module):
                yield Place(f"{prefix}.{state}" if prefix else state, module, state)
