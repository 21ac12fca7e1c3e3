"""Palettes as state dictionaries of prepared models hold them: ours, and the reference's.

coreai-opt 0.3 and 0.4 keep ``centroids`` ``[G, K, D]``, 0.2 a ``lut`` ``[G0, G1, K, D]``, beside
``indices``, ``per_channel_scale`` ``[rows, 1]`` and the state of a module that quantizes tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from palette_core.config.spec import QuantizationScheme
from palette_core.errors import IncompatibleShapeError
from palette_core.palettizer.state_values import not_plain, same_values
from palette_core.planning import TensorPlan
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.checked.lut_quantizers import make_lut_quantizer
from palette_core.tensors.dtypes import dtype_name
from palette_core.tensors.nonzeros import codes_in_use
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.scales import scale_shape

_FOREIGN = "fake_palett_enabled"  # only the reference's have it
_QUANTIZER = "_lut_fake_quantizer."
_SCALE = f"{_QUANTIZER}qparams_calculator.scale"
_ZERO_POINT = f"{_QUANTIZER}qparams_calculator.zero_point"
_SECONDARY = frozenset(
    {
        _FOREIGN,
        "observer_enabled",
        f"{_QUANTIZER}fake_quant_enabled",
        f"{_QUANTIZER}observer_enabled",
        f"{_QUANTIZER}_disabled",
        f"{_QUANTIZER}qparams_calculator.minval",
        "lut_quantization_scale",
        "lut_quantization_zero_point",
    }
)
"""Parts of the reference's that say nothing of the weight, or say it a second time."""


class UnfitError(Exception):
    """A dictionary does not fit a tensor's plan; the text names the tensor."""


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
    reader = _Reader(plan, prefixes[0], each[0], catalog)
    if _FOREIGN not in each[0]:
        return StoredPalette(reader.own(), tuple(prefixes), False)
    original = f"{prefixes[0].removesuffix('0.')}original"
    return StoredPalette(reader.foreign(original, state_dict), tuple(prefixes), True)


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
@dataclass
class _Reader:
    """Reads the parts of one palette, and notes which of them it has read."""

    plan: TensorPlan
    prefix: str
    parts: Mapping[str, Any]
    catalog: Catalog
    taken: set[str] = field(default_factory=set)

    def own(self) -> PalettizedTensor:
        """Return a palette in our own layout; flags and what training adds are not looked at."""
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

    def foreign(self, original: str, state_dict: Mapping[str, Any]) -> PalettizedTensor:
        """Return a palette in the reference's layout."""
        spec, kernel = self.plan.spec, math.prod(self.plan.shape[2:])
        if spec.cluster_dim > 1 and kernel > 1 and getattr(spec.granularity, "axis", 0) == 1:
            raise UnfitError(
                f"{self.prefix}indices: with groups on axis 1 the reference's vectors lie within "
                "kernels, and not along output channels; such palettes cannot be taken over"
            )
        table = "centroids" if "centroids" in self.parts else "lut"
        lut, scale_of_lut, zero = self.on_grid(table, self.take(table)), None, None
        if spec.lut_qspec is not None:
            scale_of_lut = self.one_each(self.take(_SCALE))
            point = None if spec.lut_qspec.dtype.is_floating_point else self.take(_ZERO_POINT)
            lut, zero = self.quantized(lut, scale_of_lut, point)
        scale = self.row_scale() if spec.is_scaled else None
        mask = None
        if spec.sparsity_detection_threshold is not None:
            mask = self.nonzeros(original, state_dict, spec.sparsity_detection_threshold)
        made = self.checked(lut, scale_of_lut, zero, scale, mask)
        unknown = self.parts.keys() - self.taken - _SECONDARY
        if unknown:
            named = ", ".join(f"{self.prefix}{name}" for name in sorted(unknown))
            raise UnfitError(f"not of the prepared model: {named}")
        return made

    # --- parts ----------------------------------------------------------------------------------

    def take(self, name: str) -> Tensor:
        """Return a part.

        Raises:
            UnfitError: it is missing, or no plain tensor with values.
        """
        if name not in self.parts:
            raise UnfitError(f"missing: {self.prefix}{name}")
        part: Tensor = self.parts[name]
        problem = not_plain(part)
        if problem:
            raise UnfitError(f"{self.prefix}{name} {problem}")
        self.taken.add(name)
        return part.detach()

    def demand(self, name: str, got: object, right: object) -> None:
        """Refuse a part that is not what it should be."""
        if got != right:
            shown, expected = (
                dtype_name(x) if isinstance(x, torch.dtype) else str(x) for x in (got, right)
            )
            raise UnfitError(f"{self.prefix}{name} is {shown}, expected {expected}")

    def checked(
        self,
        lut: Tensor,
        scale_of_lut: Tensor | None,
        zero: Tensor | None,
        scale: Tensor | None,
        mask: Tensor | None,
    ) -> PalettizedTensor:
        """Return the palette, as its plan has it."""
        plan, layout = self.plan, self.plan.layout
        self.demand("lut", tuple(lut.shape), layout.lut_shape(plan.spec.n_entries))
        indices = self.take("indices")
        self.demand("indices", indices.dtype, torch.uint8)
        if _FOREIGN in self.parts and mask is not None and plan.spec.cluster_dim > 1:
            indices = self.listed(indices, mask)
        self.demand("indices", list(indices.shape), list(layout.index_shape))
        if indices.numel() and int(indices.max()) >= plan.spec.n_entries:
            raise UnfitError(
                f"{self.prefix}indices go up to {int(indices.max())}, and a table of "
                f"{plan.spec.n_bits} bits has {plan.spec.n_entries} entries"
            )
        if plan.spec.lut_qspec is None:
            self.demand("lut", lut.dtype, plan.dtype)
        if mask is not None:
            indices = layout.merge_codes(
                layout.split_indices(indices) * codes_in_use(mask, layout)
            ).contiguous()
        made = PalettizedTensor(
            indices,
            lut,
            plan.spec.n_bits,
            plan.axis,
            plan.dtype,
            scale_of_lut,
            zero,
            scale,
            mask,
        )
        try:
            made.check()
        except (ValueError, IncompatibleShapeError) as error:
            raise UnfitError(f"{plan.name}: {error}") from None
        return made

    def has_zero_point(self) -> bool:
        """Return whether the tables' quantizer makes zero points."""
        plan = self.plan
        name, spec = plan.lut_quantizer, plan.spec.lut_qspec
        quantizer = make_lut_quantizer(self.catalog, name, spec, plan.name)
        assert quantizer is not None
        return quantizer.quantize(torch.linspace(-1, 1, 2)[None, :, None]).zero_point is not None

    # --- the reference's parts ------------------------------------------------------------------

    def on_grid(self, name: str, table: Tensor) -> Tensor:
        """Return tables ``[..., K, D]`` on the grid of the plan, whose blocks come row by row."""
        plan = self.plan
        right = plan.layout.lut_shape(plan.spec.n_entries)
        self.demand(name, tuple(table.shape[-2:]), right[-2:])
        self.demand(name, table[..., 0, 0].numel(), plan.layout.n_blocks)
        return table.reshape(right)

    def one_each(self, values: Tensor) -> Tensor:
        """Return what there is one of for every table, ``[*grid, 1, 1]``."""
        self.demand(_SCALE, values.numel(), self.plan.layout.n_blocks)
        return values.reshape(*self.plan.layout.grid, 1, 1)

    def quantized(
        self, lut: Tensor, scale: Tensor, point: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return tables as the reference quantizes them, and zero points where these matter."""
        spec = self.plan.spec.lut_qspec
        assert spec is not None
        if point is None:
            most = torch.finfo(spec.dtype).max
            made = (lut.float() / scale).clamp(-most, most).to(spec.dtype)
            return self.stored(made), None
        info, zero = torch.iinfo(spec.dtype), self.one_each(point)
        clipping = spec.qscheme is QuantizationScheme.SYMMETRIC_WITH_CLIPPING
        low = info.min + int(clipping)
        levels = (lut.float() / scale).round() + zero
        made = self.stored(levels.clamp(low, info.max).to(spec.dtype))
        return made, zero.to(spec.dtype) if self.has_zero_point() else None

    def stored(self, made: Tensor) -> Tensor:
        """Return the quantized tables that 0.2 keeps, or those made of floating ones."""
        if "quantized_lut" not in self.parts:
            return made
        table = self.take("quantized_lut")
        self.demand("quantized_lut", table.dtype, made.dtype)
        return self.on_grid("quantized_lut", table)

    def listed(self, indices: Tensor, mask: Tensor) -> Tensor:
        """Return indices of all points, of a list of those of the nonzeros, vector by vector.

        The reference drops nonzeros that make no whole vector, and stores zeros where a group has
        fewer nonzeros than another; nothing tells afterwards which, nor are these zeros then.
        """
        layout = self.plan.layout
        counts = layout.scalars.split(mask)[..., 0].sum(1)
        if bool((counts != counts[0]).any()) or int(counts[0]) % layout.cluster_dim:
            raise UnfitError(
                f"{self.prefix}indices are of vectors in which zeros and other values are mixed, "
                "as groups have unevenly many nonzeros; such palettes cannot be taken over"
            )
        used = codes_in_use(mask, layout)
        self.demand("indices", list(indices.shape), [int(used.sum())])
        codes = torch.zeros_like(used, dtype=torch.uint8)
        codes[used] = indices
        return layout.merge_codes(codes).contiguous()

    def row_scale(self) -> Tensor:
        """Return the scale of every row, which is along the first axis whatever the operation."""
        plan, scale = self.plan, self.take("per_channel_scale")
        extents = scale_shape(plan.shape, plan.axis, plan.spec.scale_block_size)
        rows = (plan.shape[0], *[1] * (len(plan.shape) - 1))
        if extents != rows:
            raise UnfitError(
                f"{self.prefix}per_channel_scale has factors for axis 0, expected factors of "
                f"shape {extents}: these palettes cannot be taken over"
            )
        self.demand("per_channel_scale", scale.numel(), rows[0])
        return scale.reshape(rows)

    def nonzeros(self, original: str, state_dict: Mapping[str, Any], least: float) -> Tensor | None:
        """Return where the weight is not zero, if enough of it is: palettes are of that alone."""
        weight = state_dict.get(original)
        if not isinstance(weight, Tensor) or tuple(weight.shape) != self.plan.shape:
            raise UnfitError(f"missing: {original}, of shape {self.plan.shape}")
        mask = weight.detach() != 0
        zeros = mask.numel() - int(mask.sum())
        return mask if zeros and zeros >= least * mask.numel() else None
