"""Tensors filled with one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from export_rewrites._registry import rewrites

aten = torch.ops.aten


@rewrites(aten.full_like.default, why="coremltools 9.0 ignores dtype")
def full_like(a: Tensor, number: Any, *, dtype: Any = None, **rest: Any) -> Any:
    """In another dtype."""
    del rest
    if dtype is None or dtype is a.dtype:
        return NotImplemented
    if not dtype.is_floating_point:
        number = bool(number) if dtype is torch.bool else int(number)
    return aten.full.default(list(a.shape), number, dtype=dtype)


@rewrites(aten.zeros_like.default, why="coremltools 9.0 ignores dtype")
def zeros_like(a: Tensor, *, dtype: Any = None, **rest: Any) -> Any:
    """In another dtype."""
    del rest
    return full_like(a, 0, dtype=dtype)


@rewrites(aten.ones_like.default, why="coremltools 9.0 ignores dtype")
def ones_like(a: Tensor, *, dtype: Any = None, **rest: Any) -> Any:
    """In another dtype."""
    del rest
    return full_like(a, 1, dtype=dtype)


@rewrites(aten.zeros.default, why="coremltools 9.0 makes floats whatever dtype says")
def zeros(size: Sequence[int], *, dtype: Any = None, **rest: Any) -> Any:
    """In the dtype that is asked for."""
    del rest
    return aten.full.default(list(size), 0, dtype=dtype or torch.get_default_dtype())


@rewrites(aten.ones.default, why="coremltools 9.0 makes floats whatever dtype says")
def ones(size: Sequence[int], *, dtype: Any = None, **rest: Any) -> Any:
    """In the dtype that is asked for."""
    del rest
    return aten.full.default(list(size), 1, dtype=dtype or torch.get_default_dtype())


@rewrites(aten.new_zeros.default, why="coremltools 9.0 makes floats whatever dtype says")
def new_zeros(a: Tensor, size: Sequence[int], *, dtype: Any = None, **rest: Any) -> Any:
    """In the dtype that is asked for, or that of the other."""
    del rest
    return aten.full.default(list(size), 0, dtype=dtype or a.dtype)


@rewrites(aten.new_full.default, why="coremltools 9.0 makes floats whatever dtype says")
def new_full(a: Tensor, size: Sequence[int], number: Any, *, dtype: Any = None, **rest: Any) -> Any:
    """In the dtype that is asked for, or that of the other."""
    del rest
    return aten.full.default(list(size), number, dtype=dtype or a.dtype)


@rewrites(
    aten.scalar_tensor.default,
    why="coreai-torch 0.4.3 rounds the number to float16, whatever dtype says",
)
def scalar_tensor(number: Any, *, dtype: Any = None, **rest: Any) -> Any:
    """Filled, without dimensions."""
    del rest
    if isinstance(number, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return NotImplemented
    return aten.full.default([], number, dtype=dtype or torch.get_default_dtype())


@rewrites(aten.empty.memory_format, why="coreai-torch 0.4.3 has no lowering for it")
def empty(size: Sequence[int], *, dtype: Any = None, **rest: Any) -> Any:
    """Zeros: what the memory held is nobody's promise."""
    del rest
    return zeros(size, dtype=dtype)


@rewrites(aten.empty_permuted.default, why="coreai-torch 0.4.3 has no lowering for it")
def empty_permuted(
    size: Sequence[int], physical_layout: Any, *, dtype: Any = None, **rest: Any
) -> Any:
    """Zeros; the order of dimensions in memory is the converter's."""
    del physical_layout, rest
    return zeros(size, dtype=dtype)


@rewrites(aten.empty_like.default, why="torch's own decomposition lays out memory")
def empty_like(a: Tensor, *, dtype: Any = None, **rest: Any) -> Any:
    """Zeros: what the memory held is nobody's promise."""
    del rest
    return zeros(a.shape, dtype=dtype or a.dtype)
