"""Arithmetic, comparisons, tests and bits of single elements."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from export_rewrites._registry import rewrites

aten = torch.ops.aten
_LACKS = "no converter of the three has it (coreai-torch 0.4.3, coremltools 9.0, OpenVINO 2026.4)"
_COREAI = "coreai-torch 0.4.3 has no lowering for it"
_COREML = "coremltools 9.0 has no conversion for it"


def _nan(a: Tensor) -> Tensor:
    return torch.ne(a, a)


def like(number: Any, tensor: Tensor) -> Tensor:
    """Return a number as a tensor without dimensions; tensors as they are."""
    if isinstance(number, Tensor):
        return number
    whole = isinstance(number, (bool, int, torch.SymInt)) or tensor.is_floating_point()
    dtype = tensor.dtype if whole else torch.float32
    made: Tensor = aten.full.default([], number, dtype=dtype)
    return made


@rewrites(
    aten.add.Tensor,
    aten.add.Scalar,
    why="coreai-torch 0.4.3 and coremltools 9.0 leave alpha out, without a word",
)
def add(a: Tensor, b: Any, alpha: Any = 1) -> Any:
    """Of a multiple."""
    return NotImplemented if alpha == 1 else a + b * alpha


@rewrites(
    aten.sub.Tensor,
    aten.sub.Scalar,
    why="coreai-torch 0.4.3 and coremltools 9.0 leave alpha out, without a word",
)
def sub(a: Tensor, b: Any, alpha: Any = 1) -> Any:
    """Of a multiple."""
    return NotImplemented if alpha == 1 else a - b * alpha


@rewrites(
    aten.rsub.Tensor,
    aten.rsub.Scalar,
    why="coreai-torch 0.4.3 and coremltools 9.0 leave alpha out, without a word",
)
def rsub(a: Tensor, b: Any, alpha: Any = 1) -> Any:
    """Of a multiple, turned round."""
    return aten.sub.Tensor(like(b, a), a if alpha == 1 else a * alpha)


@rewrites(aten.remainder.Scalar, why=_COREAI + ", of a number")
def remainder_of_a_number(a: Tensor, b: Any) -> Any:
    """The sign of the divisor, as Python has it."""
    return torch.remainder(a, like(b, a))


@rewrites(aten.fmod.Tensor, aten.fmod.Scalar, why=_COREML)
def fmod(a: Tensor, b: Any) -> Any:
    """The sign of the dividend."""
    if not a.is_floating_point():
        return a - torch.div(a, like(b, a), rounding_mode="trunc") * b
    return a - torch.trunc(a / b) * b


@rewrites(aten.trunc.default, why=_COREML)
def trunc(a: Tensor) -> Any:
    """Towards zero."""
    return torch.sign(a) * torch.floor(torch.abs(a))


@rewrites(aten.frac.default, why="OpenVINO 2026.4 has no translation for it")
def frac(a: Tensor) -> Any:
    """Part that trunc takes away."""
    return a - torch.trunc(a)


@rewrites(aten.div.Tensor_mode, why=_COREML + " that cuts floats; OpenVINO 2026.4 cuts integers")
def div_rounded(a: Tensor, b: Any, *, rounding_mode: str | None) -> Any:
    """Quotients of floats, rounded."""
    b = like(b, a)
    if rounding_mode is None:
        return torch.div(a, b)
    if a.is_floating_point() or b.is_floating_point():
        return torch.floor(a / b) if rounding_mode == "floor" else torch.trunc(a / b)
    cut = torch.div(torch.abs(a), torch.abs(b), rounding_mode="floor") * (a.sign() * b.sign())
    if rounding_mode == "trunc":
        return cut
    return cut - ((cut * b) != a).to(a.dtype) * ((a.sign() * b.sign()) < 0).to(a.dtype)


@rewrites(aten.floor_divide.default, why="OpenVINO 2026.4 cuts where torch rounds down")
def floor_divide(a: Tensor, b: Any) -> Any:
    """Rounded down."""
    return torch.div(a, b, rounding_mode="floor")


@rewrites(aten.fmax.default, why=_LACKS)
def fmax(a: Tensor, b: Tensor) -> Any:
    """The larger one, the other where one is NaN."""
    return torch.where(_nan(a), b, torch.where(_nan(b), a, torch.maximum(a, b)))


@rewrites(aten.fmin.default, why=_LACKS)
def fmin(a: Tensor, b: Tensor) -> Any:
    """The smaller one, the other where one is NaN."""
    return torch.where(_nan(a), b, torch.where(_nan(b), a, torch.minimum(a, b)))


@rewrites(aten.hypot.default, why=_LACKS)
def hypot(a: Tensor, b: Tensor) -> Any:
    """Length, without squares that leave the range."""
    a, b = torch.abs(a), torch.abs(b)
    longer, shorter = torch.maximum(a, b), torch.minimum(a, b)
    ratio = shorter / torch.where(longer == 0, torch.ones_like(longer), longer)
    return longer * torch.sqrt(ratio * ratio + 1)


@rewrites(aten.lerp.Scalar, aten.lerp.Tensor, why=_COREML)
def lerp(start: Tensor, end: Tensor, weight: Any) -> Any:
    """Part of the way from one to the other."""
    return start + (end - start) * weight


@rewrites(aten.copysign.Tensor, aten.copysign.Scalar, why=_LACKS)
def copysign(a: Tensor, b: Any) -> Any:
    """|a| with the sign of b, that of zeros included."""
    b = like(b, a)
    size = torch.abs(a)
    return torch.where((b < 0) | ((b == 0) & (torch.reciprocal(b) < 0)), -size, size)


@rewrites(
    aten.reciprocal.default,
    why="coremltools 9.0 adds 1e-4 to what it divides by; coreai-torch 0.4.3 takes no integers",
)
def reciprocal(a: Tensor) -> Any:
    """1 / a."""
    a = a if a.is_floating_point() else a.to(torch.float32)
    return torch.div(like(1.0, a), a)


@rewrites(aten.round.decimals, why="coremltools 9.0 and OpenVINO 2026.4 have no decimals")
def round_decimals(a: Tensor, *, decimals: int) -> Any:
    """Of a multiple."""
    by = 10.0 ** abs(decimals)
    return torch.round(a * by) / by if decimals >= 0 else torch.round(a / by) * by


@rewrites(
    aten.where.ScalarSelf,
    aten.where.ScalarOther,
    aten.where.Scalar,
    why="coremltools 9.0 lacks one and wants equal dtypes of the others",
)
def where_numbers(condition: Tensor, a: Any, b: Any) -> Any:
    """Numbers in the dtype that torch gives the result."""
    dtype = torch.result_type(a, b)
    a, b = (
        x.to(dtype) if isinstance(x, Tensor) else aten.full.default([], x, dtype=dtype)
        for x in (a, b)
    )
    return torch.where(condition, a, b)


@rewrites(
    aten.ge.Tensor,
    aten.ge.Scalar,
    why="coreai-torch 0.4.3 negates the opposite, so that NaN is larger than everything",
)
def at_least(a: Tensor, b: Any) -> Any:
    """Larger, or equal."""
    return torch.gt(a, b) | torch.eq(a, b) if a.is_floating_point() else NotImplemented


@rewrites(
    aten.le.Tensor,
    aten.le.Scalar,
    why="coreai-torch 0.4.3 negates the opposite, so that NaN is smaller than everything",
)
def at_most(a: Tensor, b: Any) -> Any:
    """Smaller, or equal."""
    return torch.lt(a, b) | torch.eq(a, b) if a.is_floating_point() else NotImplemented


@rewrites(aten.isnan.default, why=_COREAI)
def isnan(a: Tensor) -> Any:
    """True for what does not equal itself."""
    return _nan(a)


@rewrites(aten.isinf.default, why=_COREML)
def isinf(a: Tensor) -> Any:
    """Beyond the largest number, on either side."""
    if not a.is_floating_point():
        return torch.zeros_like(a, dtype=torch.bool)
    return torch.abs(a) == float("inf")


@rewrites(
    aten.isfinite.default,
    why="torch's own decomposition multiplies booleans, which Core AI's runtime does not",
)
def isfinite(a: Tensor) -> Any:
    """Neither NaN nor beyond the largest number."""
    if not a.is_floating_point():
        return torch.ones_like(a, dtype=torch.bool)
    return torch.eq(a, a) & (torch.abs(a) != float("inf"))


@rewrites(aten.isclose.default, why="torch's own decomposition multiplies booleans")
def isclose(
    a: Tensor, b: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Any:
    """|a - b| ≤ atol + rtol |b|, or equal."""
    near = (a == b) | (torch.isfinite(b) & (torch.abs(a - b) <= atol + rtol * torch.abs(b)))
    return near | (_nan(a) & _nan(b)) if equal_nan else near


@rewrites(aten.logaddexp.default, why="torch's own decomposition multiplies booleans")
def logaddexp(a: Tensor, b: Tensor) -> Any:
    """log(exp a + exp b), of equal infinities too."""
    apart = torch.where(a == b, torch.zeros_like(a), torch.abs(a - b))
    return torch.maximum(a, b) + torch.log1p(torch.exp(-apart))


@rewrites(aten.nan_to_num.default, why=_COREAI + " where NaN is")
def nan_to_num(
    a: Tensor, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Any:
    """Numbers in the place of NaN and infinities."""
    if not a.is_floating_point():
        return a.clone()
    span = torch.finfo(a.dtype)
    high, low = span.max if posinf is None else posinf, span.min if neginf is None else neginf
    a = torch.where(_nan(a), like(float(nan or 0), a), a)
    a = torch.where(a == float("inf"), like(float(high), a), a)
    return torch.where(a == -float("inf"), like(float(low), a), a)


# --- bits -----------------------------------------------------------------------------------------


@rewrites(
    aten.__and__.Tensor, why="coremltools 9.0 takes the name for one of an in-place operation"
)
def and_(a: Tensor, b: Tensor) -> Any:
    """``&``."""
    return torch.bitwise_and(a, b)


@rewrites(aten.__or__.Tensor, why="coremltools 9.0 takes the name for one of an in-place operation")
def or_(a: Tensor, b: Tensor) -> Any:
    """``|``."""
    return torch.bitwise_or(a, b)


@rewrites(
    aten.__xor__.Tensor, why="coremltools 9.0 takes the name for one of an in-place operation"
)
def xor_(a: Tensor, b: Tensor) -> Any:
    """``^``."""
    return torch.bitwise_xor(a, b)


@rewrites(aten.__and__.Scalar, aten.bitwise_and.Scalar, why=_COREAI)
def and_number(a: Tensor, b: int) -> Any:
    """``&`` with a number."""
    return torch.bitwise_and(a, like(b, a))


@rewrites(aten.__or__.Scalar, aten.bitwise_or.Scalar, why=_COREAI)
def or_number(a: Tensor, b: int) -> Any:
    """``|`` with a number."""
    return torch.bitwise_or(a, like(b, a))


@rewrites(aten.__xor__.Scalar, aten.bitwise_xor.Scalar, why=_COREAI)
def xor_number(a: Tensor, b: int) -> Any:
    """``^`` with a number."""
    return torch.bitwise_xor(a, like(b, a))


@rewrites(aten.bitwise_or.Tensor, why=_COREML)
def bitwise_or(a: Tensor, b: Tensor) -> Any:
    """Of booleans."""
    return torch.logical_or(a, b) if a.dtype is torch.bool else NotImplemented


@rewrites(aten.bitwise_xor.Tensor, why=_COREML)
def bitwise_xor(a: Tensor, b: Tensor) -> Any:
    """Of booleans."""
    return torch.logical_xor(a, b) if a.dtype is torch.bool else NotImplemented


@rewrites(aten.__lshift__.Scalar, aten.bitwise_left_shift.Tensor_Scalar, why=_LACKS)
def shift_left(a: Tensor, n: int) -> Any:
    """Times a power of two."""
    return a * 2**n


@rewrites(aten.__rshift__.Scalar, aten.bitwise_right_shift.Tensor_Scalar, why=_LACKS)
def shift_right(a: Tensor, n: int) -> Any:
    """Divided by a power of two, rounded down."""
    return torch.div(a, 2**n, rounding_mode="floor")
