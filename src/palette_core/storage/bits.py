"""Bits that a model takes per weight."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from palette_core._common.pytrees import tensors
from palette_core._common.wrapped import parts_of
from palette_core.storage.sites import palette_sites

_PER_CHANNEL = (torch.per_channel_affine, torch.per_channel_affine_float_qparams)


def model_bits(model: nn.Module) -> tuple[int, int]:
    """Return bits and elements of all parameters and buffers of ``model``.

    Palettized weights count as indices of n bits, tables and scales; tensors that are quantized
    by others as what they store; everything else at its full width; tied tensors once.
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
    for tensor in itertools.chain(model.parameters(), model.buffers(), _packed_by_others(model)):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            bits += _bits_of(tensor)
            elements += tensor.numel()
    return bits, elements


def _packed_by_others(model: nn.Module) -> Iterator[Tensor]:
    """Yield tensors that are neither parameters nor buffers, as of torch's quantized modules."""
    for value in model.state_dict(keep_vars=True).values():
        if not isinstance(value, Tensor):
            yield from tensors(value)


def _bits_of(tensor: Tensor) -> int:
    """Return the bits that a tensor stores: for classes that wrap others, those of the others."""
    parts = list(parts_of(tensor).values())
    if tensor.is_quantized and tensor.qscheme() in _PER_CHANNEL:
        parts += [tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()]
    return sum(part.numel() * part.element_size() * 8 for part in parts)


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
