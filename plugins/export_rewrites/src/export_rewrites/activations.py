"""Activations, bounds, and functions of one number."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from export_rewrites._registry import rewrites
from export_rewrites.elementwise import like

aten = torch.ops.aten
_LACKS = "no converter of the three has it (coreai-torch 0.4.3, coremltools 9.0, OpenVINO 2026.4)"
_COREAI = "coreai-torch 0.4.3 has no lowering for it"


@rewrites(aten.erfc.default, why=_LACKS)
def erfc(a: Tensor) -> Any:
    """1 - erf, to float32's absolute precision."""
    return 1 - torch.erf(a)


@rewrites(aten.lgamma.default, why=_LACKS)
def lgamma(a: Tensor) -> Any:
    """Lanczos' approximation with g = 5, n = 7 (Numerical Recipes, 6.1), reflected below 0.5."""
    mirrored = a < 0.5
    x = torch.where(mirrored, 1 - a, a) - 1
    series = torch.full_like(x, 1.000000000190015)
    terms = (
        76.18009172947146,
        -86.50532032941677,
        24.01409824083091,
        -1.231739572450155,
        0.1208650973866179e-2,
        -0.5395239384953e-5,
    )
    for i, term in enumerate(terms):
        series = series + term / (x + (i + 1))
    base = x + 5.5
    value = (x + 0.5) * torch.log(base) - base + torch.log(series) + 0.5 * math.log(2 * math.pi)
    sine = torch.log(torch.abs(torch.sin(a * math.pi)))
    return torch.where(mirrored, math.log(math.pi) - sine - value, value)


@rewrites(aten.gelu.default, why="coremltools 9.0 does not look at approximate, a keyword")
def gelu(a: Tensor, *, approximate: str = "none") -> Any:
    """The approximation by a hyperbolic tangent."""
    if approximate == "none":
        return NotImplemented
    inner = (a + a * a * a * 0.044715) * math.sqrt(2 / math.pi)
    return a * (torch.tanh(inner) + 1) * 0.5


@rewrites(aten.softplus.default, why="coremltools 9.0 does not look at threshold")
def softplus(a: Tensor, beta: Any = 1, threshold: Any = 20) -> Any:
    """Straight beyond a threshold."""
    if threshold * 1.0 >= 15:  # from there on the curve and the line are equal in float32
        return NotImplemented
    return torch.where(a * beta > threshold, a, aten.softplus.default(a, beta, 20))


@rewrites(
    aten.clamp.default,
    why="coremltools 9.0 makes the largest number of infinities that have no bound, and floats of "
    "integers",
)
def clamp(a: Tensor, min: Any = None, max: Any = None) -> Any:
    """One bound, or two of integers."""
    if min is not None and max is not None and a.is_floating_point():
        return NotImplemented
    a = a if min is None else torch.maximum(a, like(min, a))
    return a if max is None else torch.minimum(a, like(max, a))


@rewrites(aten.clamp.Tensor, why="coremltools 9.0 takes no bounds of more than one element")
def clamp_by_tensors(a: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Any:
    """A bound for each element."""
    a = a if min is None else torch.maximum(a, min)
    return a if max is None else torch.minimum(a, max)


@rewrites(
    aten.log_sigmoid_forward.default,
    why="coremltools 9.0 fails on torch's own decomposition, which fills a tensor of no elements",
)
def log_sigmoid(a: Tensor) -> Any:
    """Without overflow on either side; the second result is for gradients."""
    return torch.clamp(a, max=0) - torch.log1p(torch.exp(-torch.abs(a))), a.clone()


@rewrites(aten.clamp_min.default, why="coremltools 9.0 wants equal dtypes")
def clamp_min(a: Tensor, min: Any) -> Any:
    """A lower bound."""
    return torch.maximum(a, like(min, a))


@rewrites(aten.clamp_max.default, why="coremltools 9.0 wants equal dtypes")
def clamp_max(a: Tensor, max: Any) -> Any:
    """An upper bound."""
    return torch.minimum(a, like(max, a))


@rewrites(aten.asinh.default, why="coremltools 9.0 names an operation that Core ML lacks")
def asinh(a: Tensor) -> Any:
    """By log1p, which keeps small ones."""
    size = torch.abs(a)
    square = size * size
    return torch.sign(a) * torch.log1p(size + square / (torch.sqrt(square + 1) + 1))


@rewrites(aten.acosh.default, why="coremltools 9.0 names an operation that Core ML lacks")
def acosh(a: Tensor) -> Any:
    """By log1p, which keeps those near 1."""
    over = a - 1
    return torch.log1p(over + torch.sqrt(over * (a + 1)))


@rewrites(aten.elu.default, why=_COREAI)
def elu(a: Tensor, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> Any:
    """Also SELU and CELU."""
    below = torch.expm1(torch.clamp(a, max=0) * input_scale) * (alpha * scale)
    return torch.where(a > 0, a * scale, below)


@rewrites(aten.rrelu_with_noise_functional.default, why=_COREAI)
def rrelu(
    a: Tensor,
    noise: Tensor,
    lower: float = 0.125,
    upper: float = 1 / 3,
    training: bool = False,
    generator: Any = None,
) -> Any:
    """In evaluation a leaky one."""
    del generator
    if training:
        return NotImplemented
    return torch.where(a > 0, a, a * ((lower + upper) / 2)), noise


@rewrites(aten.maximum.default, why="OpenVINO 2026.4 drops NaN")
def maximum(a: Tensor, b: Tensor) -> Any:
    """NaN where either is."""
    if not a.is_floating_point():
        return NotImplemented
    return torch.where(
        torch.ne(a, a), a, torch.where(torch.ne(b, b), b, aten.maximum.default(a, b))
    )


@rewrites(aten.minimum.default, why="OpenVINO 2026.4 drops NaN")
def minimum(a: Tensor, b: Tensor) -> Any:
    """NaN where either is."""
    if not a.is_floating_point():
        return NotImplemented
    return torch.where(
        torch.ne(a, a), a, torch.where(torch.ne(b, b), b, aten.minimum.default(a, b))
    )


@rewrites(aten.exp2.default, why="OpenVINO 2026.4 has no translation for it")
def exp2(a: Tensor) -> Any:
    """By the exponential, where the logarithm of 2 is exact enough for float32."""
    return torch.pow(like(2.0, a), a)


def _number(x: Any) -> Any:
    """Return where a tensor is no NaN."""
    return torch.eq(x, x) if isinstance(x, Tensor) else x == x  # noqa: PLR0124


@rewrites(aten.gt.Tensor, aten.gt.Scalar, why="OpenVINO 2026.4 has NaN larger than everything")
def larger(a: Tensor, b: Any) -> Any:
    """Larger, of two numbers."""
    if not a.is_floating_point():
        return NotImplemented
    return torch.gt(a, b) & _number(a) & _number(b)


@rewrites(aten.lt.Tensor, aten.lt.Scalar, why="OpenVINO 2026.4 has NaN smaller than everything")
def smaller(a: Tensor, b: Any) -> Any:
    """Smaller, of two numbers."""
    if not a.is_floating_point():
        return NotImplemented
    return torch.lt(a, b) & _number(a) & _number(b)
