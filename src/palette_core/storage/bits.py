"""Bits that a model takes per weight."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from palette_core._common.modules import named_modules
from palette_core._common.pytrees import tensors
from palette_core._common.wrapped import inner_tensors
from palette_core.storage.sites import palette_sites
from palette_core.storage.written_buffers import written_buffers

_PLAIN = (Tensor, nn.Parameter)
_PER_CHANNEL = (torch.per_channel_affine, torch.per_channel_affine_float_qparams)


@final
class BitsPerWeight(float):
    """Average bits per element of a model: a number, and what it is made of.

    Attributes:
        bpw: the number itself.
        per_module_map: the same for every module that has tensors of its own, by its name.
        total_bits: of all parameters and buffers.
        total_weights: their elements.
        state_bits: bits of the buffers that a prepared model writes when it runs, such as caches,
            by name; these count as no weights, and are in none of the others.
    """

    per_module_map: dict[str, float]
    total_bits: int
    total_weights: int
    state_bits: dict[str, int]

    def __new__(cls, counted: Mapping[str, tuple[int, int]]) -> Self:
        """Make it of bits and elements by module, of which there are some."""
        bits, weights = (sum(pair[at] for pair in counted.values()) for at in (0, 1))
        made = super().__new__(cls, bits / weights)
        made.per_module_map = {n: part / count for n, (part, count) in counted.items() if count}
        made.total_bits, made.total_weights = bits, weights
        made.state_bits = {}
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (float(self), vars(self))

    @property
    def bpw(self) -> float:
        """The average, as a plain number."""
        return float(self)


def _restored(value: float, parts: dict[str, Any]) -> BitsPerWeight:
    made = float.__new__(BitsPerWeight, value)
    vars(made).update(parts)
    return made


def model_bits(model: nn.Module, written: Collection[str] | None = None) -> tuple[int, int]:
    """Return bits and elements of all parameters and buffers of ``model`` but written ones.

    Palettized weights count as indices of n bits, tables and scales; tensors that are quantized
    by others as what they store; everything else at its full width; tied tensors once.

    Args:
        model: the model.
        written: names of buffers that it writes when it runs; None takes those that are noted.
    """
    counted = bits_by_module(model, written).values()
    return sum(bits for bits, _ in counted), sum(elements for _, elements in counted)


def bits_by_module(
    model: nn.Module, written: Collection[str] | None = None
) -> dict[str, tuple[int, int]]:
    """Return bits and elements of the tensors of every module, without its submodules.

    Arguments are those of `model_bits`.
    """
    counted: dict[str, list[tuple[int, int]]] = {}
    states = frozenset(written_buffers(model) if written is None else written)
    seen: set[int] = set()
    for site in palette_sites(model):
        held: list[nn.Module] = [site.palette]
        if site.palette.is_enabled:
            held = [place.chain for place in site.places]
            pair = site.palette.size_in_bits(), site.palette.palettized_shape().numel()
            counted.setdefault(_owner(site.name), []).append(pair)
        seen.update(id(t) for part in held for t in part.state_dict(keep_vars=True).values())
    for name, tensor in _tensors_of(model):
        if id(tensor) not in seen and name not in states:
            seen.add(id(tensor))
            counted.setdefault(_owner(name), []).append((_bits_of(tensor), tensor.numel()))
    return {
        name: (sum(bits for bits, _ in pairs), sum(elements for _, elements in pairs))
        for name, pairs in counted.items()
    }


def _owner(name: str) -> str:
    """Return the name of the module that a tensor hangs in, by which it is computed or not."""
    owner = name.rpartition(".")[0]
    if "parametrizations" not in owner:
        return owner
    return re.split(r"(?:^|\.)parametrizations(?:\.|$)", owner)[0]


def _tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters, then buffers, then what is neither, as in torch's quantized modules."""
    modules = named_modules(model)
    for registry in ("_parameters", "_buffers"):
        for owner, module in modules:
            for name, tensor in getattr(module, registry).items():
                if tensor is not None:
                    yield f"{owner}.{name}" if owner else name, tensor
    if all(_is_saved_by_torch(module) for _, module in modules):
        return  # then a state dict, which takes its time, holds nothing else
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            yield from ((name, tensor) for tensor in tensors(value))


def _is_saved_by_torch(module: nn.Module) -> bool:
    """Return whether a state dict holds parameters and buffers of a module, and nothing else."""
    kind = type(module)
    return (
        kind._save_to_state_dict is nn.Module._save_to_state_dict
        and kind.get_extra_state is nn.Module.get_extra_state
        and kind.state_dict is nn.Module.state_dict
        and not module._state_dict_hooks
    )


def _bits_of(tensor: Tensor) -> int:
    """Return the bits that a tensor stores: for classes that wrap others, those of the others."""
    if type(tensor) in _PLAIN and not tensor.is_quantized:
        return tensor.numel() * tensor.element_size() * 8
    parts = list(inner_tensors(tensor).values())
    if tensor.is_quantized and tensor.qscheme() in _PER_CHANNEL:
        parts += [tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()]
    return sum(part.numel() * part.element_size() * 8 for part in parts)


def bits_per_weight(model: nn.Module) -> BitsPerWeight:
    """Return the average bits per element over all parameters and buffers of ``model``.

    Works on dense, prepared and finalized models; a prepared model counts as what finalizing
    makes of it. Buffers that it writes when it runs, as `prepare` has seen, do not count.

    Returns:
        a float, with the attributes of the reference's result.

    Raises:
        TypeError: not a module.
        ValueError: the model has no parameters or buffers.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    counted = bits_by_module(model)
    if not any(elements for _, elements in counted.values()):
        raise ValueError(f"{type(model).__name__} has no parameters or buffers")
    made = BitsPerWeight(counted)
    made.state_bits = {n: _bits_of(model.get_buffer(n)) for n in written_buffers(model)}
    return made
