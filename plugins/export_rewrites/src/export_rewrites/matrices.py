"""Products, and sums of rows of tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from export_rewrites._registry import rewrites, rewrites_of

aten = torch.ops.aten
_COREAI = "coreai-torch 0.4.3 has no lowering for it"
_LACKS = "no converter of the three has it (coreai-torch 0.4.3, coremltools 9.0, OpenVINO 2026.4)"


@rewrites(aten.embedding_renorm.default, why=_LACKS)
def embedding_renorm(weight: Tensor, index: Tensor, max_norm: float, norm_type: float) -> Any:
    """Rows that are too long, shortened; those that nothing looks up keep their length unseen."""
    del index
    length = torch.linalg.vector_norm(weight, norm_type, dim=-1, keepdim=True)
    return torch.where(length > max_norm, weight * (max_norm / (length + 1e-7)), weight)


@rewrites(aten._embedding_bag.default, aten._embedding_bag_forward_only.default, why=_LACKS)
def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> Any:
    """A product with the matrix of who belongs to which bag; of sums and means."""
    del scale_grad_by_freq, sparse
    if mode == 2 or padding_idx != -1:
        return NotImplemented
    place = torch.arange(indices.shape[0]).unsqueeze(0)
    start = (offsets[:-1] if include_last_offset else offsets).unsqueeze(1)
    end = offsets[1:] if include_last_offset else F.pad(offsets[1:], (0, 1), value=indices.shape[0])
    member = ((place >= start) & (place < end.unsqueeze(1))).to(weight.dtype)
    rows = F.embedding(indices, weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    bags = member @ rows
    if mode == 1:
        bags = bags / member.sum(-1, keepdim=True).clamp(min=1)
    return bags, torch.zeros_like(indices), torch.zeros_like(offsets), torch.zeros_like(offsets)


@rewrites(aten._trilinear.default, why=_LACKS)
def trilinear(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
    unroll_dim: int = 1,
) -> Any:
    """A product of three, summed."""
    del unroll_dim
    for axis in expand1:
        a = a.unsqueeze(axis)
    for axis in expand2:
        b = b.unsqueeze(axis)
    for axis in expand3:
        c = c.unsqueeze(axis)
    return (a * b * c).sum(list(sumdim))


@rewrites(aten.mv.default, why="coremltools 9.0 and coreai-torch 0.4.3 multiply matrices only")
def mv(matrix: Tensor, vector: Tensor) -> Any:
    """With a matrix of one column."""
    return torch.mm(matrix, vector.unsqueeze(1)).squeeze(1)


@rewrites(aten.matmul.default, why="coremltools 9.0 fails on vectors behind a matrix")
def matmul(a: Tensor, b: Tensor) -> Any:
    """Vectors as matrices."""
    if a.dim() > 1 and b.dim() > 1:
        return NotImplemented
    left, right = a.unsqueeze(0) if a.dim() == 1 else a, b.unsqueeze(1) if b.dim() == 1 else b
    made = aten.matmul.default(left, right)
    made = made.squeeze(-1) if b.dim() == 1 else made
    return made.squeeze(-1 if b.dim() == 1 else -2) if a.dim() == 1 else made


@rewrites(aten.addmv.default, why=_COREAI)
def addmv(a: Tensor, matrix: Tensor, vector: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """A product and a sum."""
    return a * beta + (matrix @ vector.unsqueeze(-1)).squeeze(-1) * alpha


@rewrites(aten._grouped_mm.default, why=_LACKS)
@rewrites_of("transformers::grouped_mm_fallback", why="only transformers 5.24 itself computes it")
def grouped_mm(
    rows: Tensor, weights: Tensor, offs: Tensor, bias: Tensor | None = None, out_dtype: Any = None
) -> Any:
    """Rows of a mixture of experts, sorted by expert.

    All rows by the weights of every expert, and those that are meant chosen; few rows by their own
    weights, picked.
    """
    if rows.dim() != 2 or weights.dim() != 3 or bias is not None or out_dtype is not None:
        return NotImplemented
    count: Any = rows.shape[0]
    experts = weights.shape[0]
    place = torch.arange(count, dtype=offs.dtype).unsqueeze(-1)
    expert = (offs <= place).to(torch.int64).sum(-1)  # [rows]; as many as there are for no expert
    if isinstance(count, int) and count <= experts:
        picked = weights.index_select(0, expert.clamp(max=experts - 1))
        made = (rows.unsqueeze(1) @ picked).squeeze(1)
        return torch.where((expert < experts).unsqueeze(-1), made, torch.zeros_like(made))
    every = rows.unsqueeze(0) @ weights  # [experts, rows, out]
    mine = expert.unsqueeze(0) == torch.arange(experts).unsqueeze(-1)
    return torch.where(mine.unsqueeze(-1), every, torch.zeros_like(every)).sum(0)
