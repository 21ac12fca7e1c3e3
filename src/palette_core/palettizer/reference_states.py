"""Palettes as the reference's state dictionaries hold them.

coreai-opt 0.3 and 0.4 keep ``centroids`` ``[G, K, D]``, 0.2 a ``lut`` ``[G0, G1, K, D]``, beside
``indices``, ``per_channel_scale`` ``[rows, 1]`` and the state of a module that quantizes tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from palette_core.config.spec import QuantizationScheme
from palette_core.palettizer.stored_parts import PartsReader, UnfitError
from palette_core.tensors.nonzeros import codes_in_use
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.scales import scale_shape

MARK = "fake_palett_enabled"  # only the reference's have it
_QUANTIZER = "_lut_fake_quantizer."
_SCALE = f"{_QUANTIZER}qparams_calculator.scale"
_ZERO_POINT = f"{_QUANTIZER}qparams_calculator.zero_point"
_SECONDARY = frozenset(
    {
        MARK,
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


@final
class ReferenceReader(PartsReader):
    """Reads the parts of one palette in the reference's layout."""

    def read(self, original: str, state_dict: Mapping[str, Any]) -> PalettizedTensor:
        """Return the palette.

        Args:
            original: name of the dense weight, from which zeros are found.
            state_dict: of a whole model.

        Raises:
            UnfitError: a part is missing, one too many, or does not fit.
        """
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

    def whole_indices(self, indices: Tensor, mask: Tensor | None) -> Tensor:
        """Return indices of all points; sparse vectors have a list of those of the nonzeros.

        The reference drops nonzeros that make no whole vector, and stores zeros where a group has
        fewer nonzeros than another; nothing tells afterwards which, nor are these zeros then.
        """
        if mask is None or self.plan.spec.cluster_dim == 1:
            return indices
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
