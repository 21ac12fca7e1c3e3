"""Values of state dictionaries: whether they are plain, and whether two are the same."""

from __future__ import annotations

import torch
from torch import Tensor


def not_plain(value: object) -> str:
    """Return why a value is no dense tensor with values, or nothing where it is."""
    if not isinstance(value, Tensor):
        return f"is {type(value).__name__}, expected a tensor"
    if value.layout is not torch.strided:
        return f"is of layout {value.layout}, expected a dense tensor: to_dense() makes one"
    return "has no values: it is on the meta device" if value.is_meta else ""


def same_values(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal, NaN to NaN, in dtype as well."""
    if a is b:
        return True
    if a.dtype != b.dtype or a.shape != b.shape or a.layout != b.layout or a.is_meta or b.is_meta:
        return False
    b = b.to(a.device)
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())
