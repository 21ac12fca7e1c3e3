"""Palettized weights that transformers puts together to one, such as experts, kept palettized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import Concatenate, MergeModulelist

from palette_core.tensors import PalettizedTensor
from transformers_bridge.routing import Recipe

PARTS = ("indices", "lut", "lut_scale", "lut_zero_point", "scale", "mask")
_ALIKE = ("n_bits", "axis", "dtype")


def fused(
    recipe: Recipe, tensors: Mapping[str, PalettizedTensor], model: Any
) -> PalettizedTensor | None:
    """Return what becomes of palettized sources, palettized, or None: they are to be decoded.

    Stacking and concatenating is done to indices and to tables alike, whose first axes are those
    of the weight. That is right where all sources are cut into blocks of one size.

    Args:
        recipe: with a converter.
        tensors: all sources, by name.
        model: which is loaded.
    """
    first, *others = tensors.values()
    if first.mask is not None or not all(_are_alike(first, other) for other in others):
        return None
    if not all(
        type(op) in (MergeModulelist, Concatenate) and op.dim >= 0
        for op in recipe.converter.operations
    ):
        return None
    made: dict[str, Any] = {}
    for part in PARTS:
        if getattr(first, part) is None:
            continue
        found = recipe.make(_reader(tensors, part), model)
        if [*found] != [recipe.target]:
            return None
        made[part] = found[recipe.target].view(getattr(first, part).dtype)
    more_axes = made["indices"].dim() - first.indices.dim()
    whole = replace(first, axis=first.axis + more_axes, **made)
    whole.check()
    return whole


def _reader(tensors: Mapping[str, PalettizedTensor], part: str) -> Callable[[str], Tensor]:
    def read(name: str) -> Tensor:
        found: Tensor = getattr(tensors[name], part)
        return found.view(torch.uint8) if found.element_size() == 1 else found

    return read


def _are_alike(one: PalettizedTensor, other: PalettizedTensor) -> bool:
    """Return whether both are cut into blocks of one size, with tables of one kind."""
    return (
        all(getattr(one, name) == getattr(other, name) for name in _ALIKE)
        and one.lut.shape[-2:] == other.lut.shape[-2:]
        and one.layout.block == other.layout.block
        and _kinds(one) == _kinds(other)
        and _scaled_blocks(one) == _scaled_blocks(other)
    )


def _kinds(tensor: PalettizedTensor) -> list[torch.dtype | None]:
    parts = (getattr(tensor, item.name) for item in fields(tensor) if item.name in PARTS)
    return [part if part is None else part.dtype for part in parts]


def _scaled_blocks(tensor: PalettizedTensor) -> list[int] | None:
    if tensor.scale is None:
        return None
    return [a // b for a, b in zip(tensor.shape, tensor.scale.shape, strict=True)]
