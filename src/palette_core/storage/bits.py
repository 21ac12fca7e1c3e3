"""Bits that a model takes per weight."""

from __future__ import annotations

from torch import nn

from palette_core.storage.sites import palette_sites


def model_bits(model: nn.Module) -> tuple[int, int]:
    """Return bits and elements of all parameters and buffers of ``model``.

    Palettized weights count as indices of n bits, tables and scales; everything else at its full
    width; tied tensors once.
    """
    bits = elements = 0
    seen: set[int] = set()
    for site in palette_sites(model):
        held: list[nn.Module] = [site.palette]
        if site.palette.is_enabled:
            held = [place.chain for place in site.places]
            bits += site.palette.size_in_bits()
            elements += site.palette.palettized_shape().numel()
        seen.update(id(t) for part in held for t in part.state_dict(keep_vars=True).values())
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
