"""Packed weights in a model: in the place of palettes, or of dense weights, which are freed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import final

from torch import nn

from palette_core.errors import BackendError
from palette_core.model.hooked_weights import replace_hook
from palette_core.model.parametrization import ModuleSnapshot, is_trained, replace_chain
from palette_core.storage.mapped_files import WeightFolder
from palette_core.storage.packed_weight import PackedWeight, PaletteModule
from palette_core.storage.sites import PaletteSite
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


def pack(
    sites: Sequence[PaletteSite[PaletteModule]],
    palettized: Iterable[PalettizedTensor],
    folder: WeightFolder | None = None,
) -> Unpacked:
    """Replace prepared weights by packed ones, in place.

    Everything is packed before the first is replaced, and either all are or none.

    Args:
        sites: of a prepared model.
        palettized: what stands there, by site.
        folder: keeps the packed weights, one file each, mapped into memory.

    Returns:
        The palettized weights by the fully qualified name of their first owner.

    Raises:
        BackendError: a weight to be mapped is not on the CPU.
        OSError: a file cannot be written.
    """
    packed: dict[str, PackedWeight] = {}
    for site, tensor in zip(sites, palettized, strict=True):
        palette = site.palette
        new = PackedWeight(tensor, palette.form, palette.origin).train(palette.training)
        if folder is not None:
            _map(site.name, new, folder)
        packed[site.name] = new
    with ModuleSnapshot(place.module for site in sites for place in site.places):
        for site, item in zip(sites, packed.values(), strict=True):
            _install(item, [(place.module, place.state) for place in site.places])
    return Unpacked(packed)


def install_packed(model: nn.Module, names: Iterable[str], packed: PackedWeight) -> None:
    """Put one packed weight at every place of ``names`` in a dense model."""
    parts = [name.rpartition(".") for name in names]
    places = [(model.get_submodule(prefix), state) for prefix, _, state in parts]
    for module, state in places:
        replace_hook(module, state)
    _install(packed, places)


def _install(packed: PackedWeight, places: Iterable[tuple[nn.Module, str]]) -> None:
    """Put a packed weight at places of one tensor, freeing what stood there."""
    placeholder = packed.placeholder()
    for module, state in places:
        packed.takes_gradients |= is_trained(module, state)
        replace_chain(module, state, packed, placeholder)


def _map(name: str, packed: PackedWeight, folder: WeightFolder) -> None:
    if packed.lut.device.type != "cpu":
        raise BackendError(
            f"{name} is on {packed.lut.device}, and files are mapped into the CPU's memory; "
            "move the model to the CPU, or leave mmap_dir out"
        )
    packed.map_to(folder.next_path(name))
