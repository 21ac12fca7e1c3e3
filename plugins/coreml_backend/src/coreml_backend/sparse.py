"""Sparse palettized weights as constant expressions of Core ML: iOS 18 and later.

Indices of the nonzeros are looked up by where they lie (``constexpr_lut_to_sparse``), so tables of
any grid do, with unevenly many nonzeros; then zeros are put between them
(``constexpr_sparse_to_dense``). Tables of 8-bit integers are scaled before the look-up, with every
target: after it, a zero point would move the zeros. Scales of channels and blocks come last, as in
what coremltools makes of sparse weights with scales.
"""

from __future__ import annotations

from typing import Any

import coremltools as ct
from coremltools.converters.mil.mil import Builder, Var, types
from coremltools.converters.mil.mil.block import is_current_opset_version_compatible_with

from coreml_backend.folding import without_scales_of_floats
from palette_core.errors import BackendError
from palette_core.tensors import PalettizedTensor


def emit_sparse(palettized: PalettizedTensor, name: str, *, folds: bool = False) -> Var:
    """Add the constant expressions that decode to a weight with a mask to the current block.

    Args:
        palettized: a weight in float32 or float16, whose mask leaves something.
        name: of the operation whose result is the weight.
        folds: multiply scales into tables of floats, for no floats to be scaled.

    Raises:
        BackendError: the deployment target of the current conversion has no such expressions.
    """
    p = without_scales_of_floats(palettized) if folds else palettized
    lut = p.lut.numpy()
    assert p.mask is not None
    if not is_current_opset_version_compatible_with(ct.target.iOS18):
        raise BackendError(
            "Core ML stores sparse palettized weights from iOS18 on; set the deployment target to "
            "iOS18"
        )
    mask = p.mask.numpy()
    if p.lut_scale is not None:
        zero = {} if p.lut_zero_point is None else {"offset": p.lut_zero_point.numpy()}
        lut = Builder.constexpr_blockwise_shift_scale(
            data=lut, scale=p.lut_scale.to(p.dtype).numpy(), name=f"{name}_lut", **zero
        )
    placed, values = Builder.constexpr_lut_to_sparse(
        indices_mask=mask.astype(_integers(1)),
        indices_nonzero_data=p.indices.numpy()[mask].astype(_integers(p.n_bits)),
        lut=lut,
        name=f"{name}_nonzeros",
    )
    dense_name = name if p.scale is None else f"{name}_unscaled"
    dense = Builder.constexpr_sparse_to_dense(nonzero_data=values, mask=placed, name=dense_name)
    if p.scale is None:
        return dense
    scale = p.scale.to(p.dtype).numpy()
    return Builder.constexpr_blockwise_shift_scale(data=dense, scale=scale, name=name)


def _integers(n_bits: int) -> Any:
    return types.nptype_from_builtin(types.string_to_builtin(f"uint{n_bits}"))
