"""How many bits a model takes per weight."""

from __future__ import annotations

from torch import nn

from palette_core.model.parametrization import parametrizations
from palette_core.storage.packed_weight import PackedWeight, PaletteModule, palette_modules


def palettized_bits(item: PaletteModule) -> int:
    """Return the bits of one palettized weight: indices, look-up tables, scales."""
    if isinstance(item, PackedWeight):
        return item.size_in_bits()
    return item.palettized().size_in_bits()


def model_bits(model: nn.Module) -> tuple[int, int]:
    """Return bits and elements of all parameters and buffers of ``model``.

    Palettized weights count as indices of n bits, tables and scales; everything else at its full
    width; tied tensors once.
    """
    bits = elements = 0
    items = {id(item): item for _, _, _, item in palette_modules(model)}
    ours: set[int] = set()
    for _, module, state, item in palette_modules(model):
        chain = parametrizations(module)[state]
        if item.is_enabled:
            ours.update(id(t) for t in chain.state_dict(keep_vars=True).values())
        else:
            ours.update(id(t) for t in item.state_dict(keep_vars=True).values())
            items.pop(id(item), None)
    for item in items.values():
        bits += palettized_bits(item)
        elements += item.palettized_shape().numel()
    seen = set(ours)
    for tensor in [*model.parameters(), *model.buffers()]:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            bits += tensor.numel() * tensor.element_size() * 8
            elements += tensor.numel()
    return bits, elements


def bits_per_weight(model: nn.Module) -> float:
    """Return the average bits per element over all parameters and buffers of ``model``.

    Works on dense, prepared and finalized models; a prepared model counts as what finalizing
    makes of it.

    Raises:
        TypeError: not a module.
        ValueError: the model has no parameters or buffers.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    bits, elements = model_bits(model)
    if elements == 0:
        raise ValueError(f"{type(model).__name__} has no parameters or buffers")
    return bits / elements
