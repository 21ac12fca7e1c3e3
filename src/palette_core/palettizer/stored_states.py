"""Palettes as state dictionaries of prepared models hold them: ours, and the reference's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from palette_core.palettizer import reference_states
from palette_core.palettizer.state_values import same_values
from palette_core.palettizer.stored_parts import PartsReader, UnfitError
from palette_core.planning import TensorPlan
from palette_core.plugins.catalog import Catalog
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.scales import scale_shape


@dataclass(frozen=True)
class StoredPalette:
    """A palette of a state dictionary.

    Attributes:
        palettized: the weight; its parts may be the dictionary's own.
        prefixes: what the names of its parts begin with, at every place where it stands.
        is_foreign: it is in the reference's layout.
    """

    palettized: PalettizedTensor
    prefixes: tuple[str, ...]
    is_foreign: bool


def read_palette(
    plan: TensorPlan, prefixes: Sequence[str], state_dict: Mapping[str, Any], catalog: Catalog
) -> StoredPalette:
    """Read the palette of a tensor, and check it against its plan.

    Args:
        plan: what it has to be.
        prefixes: what the names of its parts begin with, for every place where it stands.
        state_dict: of a whole model.
        catalog: the installed plug-ins.

    Raises:
        UnfitError: a part is missing, one too many, or does not fit.
    """
    each = [_parts(state_dict, prefix) for prefix in prefixes]
    for owner, parts, prefix in zip(plan.owners, each, prefixes, strict=True):
        if not parts:
            raise UnfitError(_absent(owner.name, prefix, state_dict))
        if not _equal(parts, each[0]):
            raise UnfitError(f"{owner.name} is tied to {plan.name}, and has another palette")
    if reference_states.MARK not in each[0]:
        own = _OwnReader(plan, prefixes[0], each[0], catalog).read()
        return StoredPalette(own, tuple(prefixes), False)
    reader = reference_states.ReferenceReader(plan, prefixes[0], each[0], catalog)
    original = f"{prefixes[0].removesuffix('0.')}original"
    return StoredPalette(reader.read(original, state_dict), tuple(prefixes), True)


def _parts(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}


def _equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        not isinstance(a[n], Tensor) or (isinstance(b[n], Tensor) and same_values(a[n], b[n]))
        for n in a
    )


def _absent(name: str, prefix: str, state_dict: Mapping[str, Any]) -> str:
    if name in state_dict:
        return f"{name} is dense, expected indices and tables under {prefix}"
    return f"missing: all of {prefix}*"


@final
class _OwnReader(PartsReader):
    """Reads the parts of one palette in our own layout."""

    def read(self) -> PalettizedTensor:
        """Return the palette; flags and what training adds are not looked at."""
        plan, spec = self.plan, self.plan.spec
        lut, scale_of_lut, zero = self.take("lut"), None, None
        if spec.lut_qspec is not None:
            self.demand("lut", lut.dtype, torch.uint8)
            lut = lut.view(spec.lut_qspec.dtype)
            scale_of_lut = self.take("lut_scale")
            if self.has_zero_point():
                zero = self.take("lut_zero_point")
                self.demand("lut_zero_point", zero.dtype, torch.uint8)
                zero = zero.view(lut.dtype)
        scale = self.take("scale") if spec.is_scaled else None
        sparse = spec.sparsity_detection_threshold is not None and "mask" in self.parts
        mask = self.take("mask") if sparse else None
        if mask is not None:
            self.demand("mask", mask.dtype, torch.bool)
        made = self.checked(lut, scale_of_lut, zero, scale, mask)
        if scale is not None:
            extents = scale_shape(plan.shape, plan.axis, spec.scale_block_size)
            self.demand("scale", tuple(scale.shape), extents)
            if spec.scale_block_size is None:
                self.demand("scale", scale.dtype, plan.dtype)
        return made
