"""Folding: the weights of a finalized model become plain dense ones again."""

from __future__ import annotations

from torch import Tensor, nn

from palette_core.model.parametrization import ModuleSnapshot, detach
from palette_core.storage.packed_weight import PackedWeight
from palette_core.storage.savers import release_savers
from palette_core.storage.sites import palette_sites


def fold(model: nn.Module) -> nn.Module:
    """Make every packed weight of a model a plain parameter with the palette's values, in place.

    Tied weights stay tied, each takes gradients where the original did, and whatever else computed
    it before (a pruning mask, a norm) is folded in. Where anything fails the model is as before.

    Args:
        model: finalized; one without packed weights is left alone.

    Returns:
        The same model, without palettes.

    Raises:
        WeightFileError: a file that a weight is mapped from is missing or damaged.
    """
    sites = palette_sites(model, PackedWeight)
    with ModuleSnapshot(place.module for site in sites for place in site.places):
        for site in reversed(sites):  # the first comes out first in its module
            packed = site.palette
            dense = nn.Parameter(packed.dense(), requires_grad=packed.takes_gradients)
            for module, state in {(place.module, place.state): None for place in site.places}:
                detach(module, state, dense)
    release_savers(model)
    return model


def dense_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that a finalized model has once it is folded; it stays as it is.

    Raises:
        WeightFileError: a file that a weight is mapped from is missing or damaged.
    """
    states: dict[str, Tensor] = dict(model.state_dict())
    for site in palette_sites(model, PackedWeight):
        dense = site.palette.dense()
        for name in site.names:
            prefix, dot, state = name.rpartition(".")
            chain = f"{prefix}{dot}parametrizations.{state}."
            states = {key: part for key, part in states.items() if not key.startswith(chain)}
            states[name] = dense
    return states
