"""Palettized weights as constant expressions of Core ML.

What each deployment target stores is decided here, and only here:

* iOS 16 and 17: one table of floats for the whole weight (1, 2, 4, 6, 8 bits);
* iOS 18: a grid of tables and vector entries; tables of 8-bit integers are scaled *before* the
  look-up, so a scale per channel is multiplied into the tables, one for each channel;
* both: of 8-bit scalars the integers that are picked stand for themselves, without a table;
* iOS 26: integers are looked up first and scaled after, and so are channels; folded, integers have
  one scale that is the product of both, and tables of floats are as for iOS 18.

The orders are those into which coremltools' own pass ``canonicalize_quantized_lut_pattern`` would
bring the operations; met in the other order, it repeats tables, or fails on vectors and groups.
Weights with a mask are stored from iOS 18 on, see `sparse`.
"""

from __future__ import annotations

import hashlib
from typing import Any

import coremltools as ct
import numpy as np
import numpy.typing as npt
from coremltools.converters.mil.mil import Builder, Var, types
from coremltools.converters.mil.mil.block import is_current_opset_version_compatible_with
from coremltools.optimize._utils import pack_elements_into_bits

from coreml_backend.folding import fold_scale, one_scale
from coreml_backend.sparse import emit_sparse
from palette_core.errors import BackendError
from palette_core.tensors import PalettizedTensor

Array = npt.NDArray[Any]


def emit(palettized: PalettizedTensor, name: str, *, folds: bool = False) -> Var:
    """Add the constant expressions that decode to ``palettized`` to the current block.

    Args:
        palettized: a weight in float32 or float16.
        name: of the operation whose result is the weight; others get names derived from it.
        folds: scale no floats, see `folding`.

    Raises:
        BackendError: the deployment target of the current conversion cannot store it.
    """
    key = digest(palettized)
    if palettized.mask is not None:
        var = emit_sparse(palettized, name, folds=folds)
    elif not is_current_opset_version_compatible_with(ct.target.iOS18):
        var = _emit_ios16(palettized, name)
    elif not is_current_opset_version_compatible_with(ct.target.iOS26):
        var = _emit_ios18(palettized, name)
    else:
        var = (_emit_folded if folds else _emit_ios26)(palettized, name)
    _mark(var, key)
    return var


def digest(palettized: PalettizedTensor) -> str:
    """Return a name for the content: equal for equal parts, shapes and dtypes, and only then."""
    state = hashlib.sha256()
    p = palettized
    for part in (p.indices, p.lut, p.lut_scale, p.lut_zero_point, p.scale, p.mask):
        if part is None:
            state.update(b"-")
        else:
            state.update(f"{part.dtype}{tuple(part.shape)}".encode())
            state.update(part.contiguous().numpy().data)
    state.update(f"{p.n_bits},{p.axis},{p.dtype}".encode())
    return state.hexdigest()


# --- one per generation -------------------------------------------------------------------------


def _emit_ios16(p: PalettizedTensor, name: str) -> Var:
    if not is_current_opset_version_compatible_with(ct.target.iOS16):
        raise BackendError(
            "Core ML stores palettized weights from iOS16 on, most kinds from iOS18; pass "
            "minimum_deployment_target=coremltools.target.iOS18 to coremltools.convert"
        )
    plain = p.lut_scale is None and p.scale is None
    if p.n_bits == 3 or p.cluster_dim > 1 or set(p.grid) != {1} or not plain:
        raise BackendError(
            "before iOS18 Core ML stores one table of floats per weight, of 1, 2, 4, 6 or 8 bits, "
            "without vectors and scales; set the deployment target to iOS18"
        )
    return Builder.constexpr_lut_to_dense(
        indices=pack_elements_into_bits(p.indices.numpy(), p.n_bits),
        lut=p.lut.reshape(-1).numpy(),
        shape=np.array(p.indices.shape, np.uint32),
        name=name,
    )


def _emit_ios18(p: PalettizedTensor, name: str) -> Var:
    p = fold_scale(p)
    if p.lut_scale is None:
        return _look_up(p, p.lut.numpy(), name)
    picked = p.picked_entries()
    if picked is not None:
        return _shift_scale(picked.numpy(), *_scale_and_zero(p, p.grid), name)
    lut = _shift_scale(p.lut.numpy(), *_scale_and_zero(p, _as_lut(p)), f"{name}_lut")
    return _look_up(p, lut, name)


def _emit_ios26(p: PalettizedTensor, name: str) -> Var:
    last = name
    var: Array | Var
    steps: list[tuple[Array, Array | None, str]] = []
    if p.scale is not None:
        steps.append((p.scale.to(p.dtype).numpy(), None, last))
        last = f"{name}_unscaled"
    if p.lut_scale is not None:
        steps.append((*_scale_and_zero(p, p.grid), last))
        last = f"{name}_integers"
    picked = p.picked_entries()
    var = _look_up(p, p.lut.numpy(), last) if picked is None else picked.numpy()
    for scale, zero, step_name in reversed(steps):
        var = _shift_scale(var, scale, zero, step_name)
    assert isinstance(var, Var)  # entries that stand for themselves have a step
    return var


def _emit_folded(p: PalettizedTensor, name: str) -> Var:
    if p.lut_scale is None or p.scale is None:
        return _emit_ios26(fold_scale(p), name)
    picked = p.picked_entries()
    integers = p.lut.numpy()
    data = _look_up(p, integers, f"{name}_integers") if picked is None else picked.numpy()
    scale, zero = one_scale(p)
    return _shift_scale(data, scale.numpy(), None if zero is None else zero.numpy(), name)


def _as_lut(p: PalettizedTensor) -> tuple[int, ...]:
    return (*p.grid, 1, 1)


def _scale_and_zero(p: PalettizedTensor, shape: tuple[int, ...]) -> tuple[Array, Array | None]:
    """Return scale and zero point of the entries in the shape that an operation wants."""
    assert p.lut_scale is not None
    scale = p.lut_scale.to(p.dtype).reshape(shape).numpy()
    zero = p.lut_zero_point
    return scale, None if zero is None else zero.reshape(shape).numpy()


# --- operations ---------------------------------------------------------------------------------


def _look_up(p: PalettizedTensor, lut: Array | Var, name: str) -> Var:
    dtype = types.nptype_from_builtin(types.string_to_builtin(f"uint{p.n_bits}"))
    arguments: dict[str, Any] = {} if p.cluster_dim == 1 else {"vector_axis": np.int32(p.axis)}
    return Builder.constexpr_lut_to_dense(
        indices=p.indices.numpy().astype(dtype), lut=lut, name=name, **arguments
    )


def _shift_scale(data: Array | Var, scale: Array, zero: Array | None, name: str) -> Var:
    arguments: dict[str, Any] = {} if zero is None else {"offset": zero}
    return Builder.constexpr_blockwise_shift_scale(data=data, scale=scale, name=name, **arguments)


def _mark(var: Var, key: str) -> None:
    """Keep coremltools from merging tables that merely look alike.

    Its pass ``const_deduplication`` takes large constants for equal within 1e-12, small ones where
    eight decimals of them agree; constants with different ``weight_key`` stay apart.
    """
    var.op.weight_key = key
    for part in var.op.inputs.values():
        if part.op is not None:
            _mark(part, key)
