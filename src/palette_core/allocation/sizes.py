"""Sizes of palettes that are only planned."""

from __future__ import annotations

import torch
from torch import Tensor

from palette_core.planning import TensorPlan
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.checked.lut_quantizers import make_lut_quantizer
from palette_core.storage.forms.lookup import stored_bits
from palette_core.tensors.codebook import Codebook
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.scales import scale_shape


def planned_bits(plan: TensorPlan, catalog: Catalog) -> int | None:
    """Return the bits that any palette of a plan takes; None where that depends on the palette.

    Raises:
        ClusteringError: the plan's LUT quantizer fails.
        CheckpointError: its stored form fails.
    """
    if plan.spec.sparsity_detection_threshold is not None:
        return None  # zeros decide
    # Scales by block are in float16 where that keeps them, which weights decide.
    widths = {plan.dtype, *([torch.float16] if plan.spec.scale_block_size is not None else [])}
    sizes = {
        stored_bits(_some(plan, code, width, catalog), plan.spec.stored_form)
        for code in (0, -1)
        for width in widths
    }
    return sizes.pop() if len(sizes) == 1 else None


def _some(plan: TensorPlan, code: int, width: torch.dtype, catalog: Catalog) -> PalettizedTensor:
    """Return a palette of the plan's kind, all of whose indices are one: of 0.0, or of 1.0."""
    layout, entries = plan.layout, plan.spec.n_entries
    steps = torch.linspace(0, 1, entries, dtype=plan.dtype)
    lut = steps[None, :, None].repeat(layout.n_blocks, 1, layout.cluster_dim)
    quantizer = make_lut_quantizer(catalog, plan.lut_quantizer, plan.spec.lut_qspec, plan.name)
    quantized = None if quantizer is None else quantizer.quantize(lut)
    codes = torch.tensor(code % entries, dtype=torch.uint8)
    scale: Tensor | None = None
    if plan.spec.is_scaled:
        scale = torch.ones(
            scale_shape(plan.shape, plan.axis, plan.spec.scale_block_size), dtype=width
        )
    return PalettizedTensor.from_codebook(
        Codebook(lut, codes.expand(layout.n_blocks, layout.points_per_block), quantized),
        layout,
        n_bits=plan.spec.n_bits,
        dtype=plan.dtype,
        scale=scale,
    )
