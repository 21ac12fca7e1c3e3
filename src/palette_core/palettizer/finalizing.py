"""From a prepared model to packed weights behind one operator, dense originals freed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import final

from torch import nn

from palette_core.errors import BackendError
from palette_core.model.parametrization import Kept, replace_chain
from palette_core.palettizer.palettized_weight import PalettizedWeight
from palette_core.storage.mapped_files import WeightFolder
from palette_core.storage.packed_weight import PackedWeight, PaletteModule, palette_modules
from palette_core.tensors.palettized import PalettizedTensor


@final
class Unpacked(Mapping[str, PalettizedTensor]):
    """Packed weights by name, each unpacked when it is asked for and not before."""

    def __init__(self, packed: Mapping[str, PackedWeight]) -> None:
        self._packed = packed

    def __getitem__(self, name: str) -> PalettizedTensor:
        return self._packed[name].palettized()

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)


def pack_model(model: nn.Module, folder: WeightFolder | None = None) -> Unpacked:
    """Replace every prepared weight by a packed one, in place.

    Tied weights share one packed weight. Everything is packed before the first is replaced, and
    either all are or none.

    Args:
        model: a prepared model.
        folder: keeps the packed weights, one file each, mapped into memory.

    Returns:
        The palettized weights by the fully qualified name of their first owner.

    Raises:
        BackendError: a weight to be mapped is not on the CPU.
        OSError: a file cannot be written.
    """
    packed: dict[int, PackedWeight] = {}
    named: dict[str, PackedWeight] = {}
    places = list(palette_modules(model))
    for name, _, _, item in places:
        if not isinstance(item, PalettizedWeight) or id(item) in packed:
            continue
        new = PackedWeight(item.palettized()).train(item.training)
        if folder is not None:
            _map(name, new, folder)
        packed[id(item)] = named[name] = new
    _replace([place for place in places if id(place[3]) in packed], packed)
    return Unpacked(named)


def _map(name: str, packed: PackedWeight, folder: WeightFolder) -> None:
    if packed.indices.device.type != "cpu":
        raise BackendError(
            f"{name} is on {packed.indices.device}, and files are mapped into the CPU's memory; "
            "move the model to the CPU, or leave mmap_dir out"
        )
    packed.map_to(folder.next_path(name))


def _replace(
    places: list[tuple[str, nn.Module, str, PaletteModule]],
    packed: Mapping[int, PackedWeight],
) -> None:
    placeholders = {key: item.placeholder() for key, item in packed.items()}
    kept = Kept(module for _, module, _, _ in places)
    try:
        for _, module, state, item in places:
            replace_chain(module, state, packed[id(item)], placeholders[id(item)])
    except BaseException:
        kept.restore()
        raise
