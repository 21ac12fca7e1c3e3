"""Attention and convolutions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from export_rewrites._registry import rewrites

aten = torch.ops.aten


@rewrites(
    aten.scaled_dot_product_attention.default,
    why="rows that may look at nothing are 0 in torch, the mean in Core AI's runtime and NaN as "
    "Core ML and OpenVINO 2026.4 have it; coremltools 9.0 does not look at enable_gqa, and "
    "coreai-torch 0.4.3 fails on values that are shorter than keys",
)
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Heads repeated, empty rows opened and their result taken out."""
    slim = query.shape[-1] != value.shape[-1]
    if dropout_p or (attn_mask is None and not enable_gqa and not slim):
        return NotImplemented
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        heads = query.shape[-3]
        key = key.repeat_interleave(heads // key.shape[-3], -3)
        value = value.repeat_interleave(heads // value.shape[-3], -3)
    call = _by_hand if slim else aten.scaled_dot_product_attention.default
    if attn_mask is None:
        return call(query, key, value, None, 0.0, is_causal, scale=scale)
    seen = attn_mask if attn_mask.dtype is torch.bool else attn_mask > float("-inf")
    some = seen.any(-1, keepdim=True)
    if attn_mask.dtype is torch.bool:
        mask: Tensor = torch.where(
            seen | torch.logical_not(some),
            aten.full.default([], 0.0, dtype=query.dtype),
            aten.full.default([], float("-inf"), dtype=query.dtype),
        )
    else:
        mask = torch.where(some, attn_mask, torch.zeros_like(attn_mask))
    made = call(query, key, value, mask, 0.0, is_causal, scale=scale)
    return torch.where(some, made, torch.zeros_like(made))


def _by_hand(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    *,
    scale: float | None,
) -> Tensor:
    """Return attention in its parts."""
    del dropout_p
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query @ key.transpose(-2, -1)) * factor
    if is_causal:
        rows, columns = scores.shape[-2:]
        later = torch.arange(columns) > torch.arange(rows).unsqueeze(-1)
        low = aten.full.default([], float("-inf"), dtype=scores.dtype)
        scores = torch.where(later, low, scores)
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, -1) @ value


@rewrites(
    aten.convolution.default, why="coreai-torch 0.4.3 has no transposed convolution of volumes"
)
def convolution(
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Any:
    """A convolution of the input with zeros between, by the weight turned round."""
    if not transposed or weight.dim() != 5:
        return NotImplemented
    n = 3
    stride, padding, dilation, extra = (
        list(x) * n if len(x) == 1 else list(x) for x in (stride, padding, dilation, output_padding)
    )
    for axis, step in enumerate(stride):
        if step > 1:
            a = _apart(a, axis + 2, step)
    sides: list[int] = []
    for axis in reversed(range(n)):
        reach = dilation[axis] * (weight.shape[axis + 2] - 1) - padding[axis]
        sides += [reach, reach + extra[axis]]
    turned = weight.flip([2, 3, 4])
    split = turned.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    turned = split.transpose(1, 2).reshape(-1, weight.shape[0] // groups, *weight.shape[2:])
    return aten.convolution.default(
        F.pad(a, sides), turned, bias, [1] * n, [0] * n, dilation, False, [0] * n, groups
    )


def _apart(a: Tensor, axis: int, step: int) -> Tensor:
    """Put ``step - 1`` zeros between the elements of an axis."""
    moved = a.movedim(axis, -1)
    lead, size = list(moved.shape[:-1]), moved.shape[-1]
    flat = moved.reshape(-1, size, 1)
    spread = F.pad(flat, [0, step - 1]).reshape(*lead, size * step)
    return spread.narrow(-1, 0, (size - 1) * step + 1).movedim(-1, axis)
