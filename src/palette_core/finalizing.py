"""From a prepared model to packed weights behind one operator, dense originals freed."""

from __future__ import annotations

from torch import nn

from palette_core.packed_weight import PackedWeight, palette_modules
from palette_core.palette_modules import PalettizedWeight
from palette_core.palettized import PalettizedTensor
from palette_core.parametrization import Kept, replace_chain


def pack_model(model: nn.Module) -> dict[str, PalettizedTensor]:
    """Replace every prepared weight by a packed one, in place.

    Tied weights share one packed weight. Everything is packed before the first is
    replaced, and either all are or none.

    Returns:
        The palettized weights by the fully qualified name of their first owner.
    """
    packed: dict[int, PackedWeight] = {}
    palettized: dict[str, PalettizedTensor] = {}
    places = list(palette_modules(model))
    for name, _, _, item in places:
        if isinstance(item, PalettizedWeight) and id(item) not in packed:
            palettized[name] = item.palettized()
            packed[id(item)] = PackedWeight(palettized[name]).train(item.training)
    places = [place for place in places if id(place[3]) in packed]
    placeholders = {key: item.placeholder() for key, item in packed.items()}
    kept = Kept(module for _, module, _, _ in places)
    try:
        for _, module, state, item in places:
            replace_chain(module, state, packed[id(item)], placeholders[id(item)])
    except BaseException:
        kept.restore()
        raise
    return palettized
