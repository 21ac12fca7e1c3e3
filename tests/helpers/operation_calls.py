"""Calls of torch's operations, in many shapes, for their contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Call = tuple[Any, ...]


def some(*shape: int) -> Tensor:
    """Coordinates of different sizes, so that one axis is not taken for another."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
    for axis, extent in enumerate(shape):
        by_axis = [1] * len(shape)
        by_axis[axis] = extent
        x = x * torch.linspace(0.5, 2.0, extent).reshape(by_axis)
    return x


def linear() -> Iterator[Call]:
    yield F.linear, (some(5, 6), some(4, 6), some(4))
    yield F.linear, (some(2, 3, 6),), {"weight": some(4, 6)}
    yield torch.ops.aten.linear.default, (some(5, 6), some(4, 6))


def convolution(rank: int) -> Iterator[Call]:
    convolve = getattr(F, f"conv{rank}d")
    x = some(2, 4, *[9, 7, 5][:rank])
    yield convolve, (x, some(6, 4, *[3] * rank))
    yield convolve, (x, some(6, 2, *[3] * rank), some(6), 2, 1), {"groups": 2}
    yield convolve, (x, some(4, 1, *[2] * rank)), {"padding": "same", "groups": 4}


def transposed(rank: int) -> Iterator[Call]:
    convolve = getattr(F, f"conv_transpose{rank}d")
    x = some(2, 4, *[5, 4, 3][:rank])
    yield convolve, (x, some(4, 6, *[3] * rank))
    yield convolve, (x, some(4, 3, *[3] * rank), some(6), 2, 1, 1), {"groups": 2}


def embedding() -> Iterator[Call]:
    yield F.embedding, (torch.tensor([[0, 3, 3], [1, 4, 0]]), some(5, 3))
    yield torch.embedding, (some(5, 3), torch.tensor([0, 2, 2]))


def attention() -> Iterator[Call]:
    x = some(5, 2, 8)
    given = {"training": False, "need_weights": False}
    parts = (some(24, 8), some(24), None, None, False, 0.0, some(8, 8), some(8))
    yield F.multi_head_attention_forward, (x, x, x, 8, 2, *parts), given


def matmul() -> Iterator[Call]:
    for x, w in (
        (some(5, 6), some(6, 4)),
        (some(2, 5, 6), some(6, 4)),
        (some(6), some(6, 4)),
        (some(3, 5, 6), some(3, 6, 4)),
        (some(2, 3, 5, 6), some(3, 6, 4)),
        (some(5, 6), some(3, 6, 4)),
        (some(2, 1, 5, 6), some(3, 6, 4)),
    ):
        yield torch.matmul, (x, w)
        if x.dim() > 1 and x.dim() == w.dim():
            yield torch.matmul, (w.mT.contiguous(), x.mT.contiguous())
    yield torch.matmul, (some(4, 6), some(6))
    yield torch.Tensor.__matmul__, (some(5, 6), some(6, 4))
    yield torch.Tensor.__rmatmul__, (some(6, 4), some(5, 6))
    yield torch.ops.aten.matmul.default, (some(5, 6), some(6, 4))


def mm() -> Iterator[Call]:
    yield torch.mm, (some(5, 6), some(6, 4))
    yield torch.mm, (some(5, 6),), {"mat2": some(6, 4)}


def bmm() -> Iterator[Call]:
    yield torch.bmm, (some(3, 5, 6), some(3, 6, 4))
    yield torch.bmm, (some(1, 5, 6), some(1, 6, 4))


def addmm() -> Iterator[Call]:
    yield torch.addmm, (some(4), some(5, 6), some(6, 4))
    yield torch.addmm, (some(4), some(5, 6), some(6, 4)), {"alpha": 0.5}


def baddbmm() -> Iterator[Call]:
    yield torch.baddbmm, (some(3, 1, 4), some(3, 5, 6), some(3, 6, 4))


def grouped() -> Iterator[Call]:
    product = getattr(F, "grouped_mm", None) or torch._grouped_mm
    weight = some(3, 8, 16)
    ends = torch.tensor([2, 2, 7], dtype=torch.int32)  # nothing for the second
    yield product, (some(7, 8), weight), {"offs": ends}
    yield product, (some(3, 4, 8), weight)


def einsum() -> Iterator[Call]:
    for formula, *shapes in (
        ("bi,io->bo", (5, 6), (6, 4)),
        ("oi,bi->bo", (4, 6), (5, 6)),
        ("bld,dhk->blhk", (2, 3, 6), (6, 2, 4)),
        ("blhk,hkd->bld", (2, 3, 2, 4), (2, 4, 6)),
        ("ebi,eio->ebo", (3, 5, 6), (3, 6, 4)),
        ("bei,eoi->beo", (5, 3, 6), (3, 4, 6)),
        ("...i,io", (2, 5, 6), (6, 4)),
        ("...i, oi -> ...o", (2, 5, 6), (4, 6)),
    ):
        yield torch.einsum, (formula, *(some(*shape) for shape in shapes))
    yield torch.einsum, ("bi,io->bo", [some(5, 6), some(6, 4)])


CALLS = {
    "linear": linear,
    **{f"conv{n}d": lambda n=n: convolution(n) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": lambda n=n: transposed(n) for n in (1, 2, 3)},
    "multi_head_attention_forward": attention,
    "embedding": embedding,
    "matmul": matmul,
    "mm": mm,
    "bmm": bmm,
    "addmm": addmm,
    "baddbmm": baddbmm,
    "grouped_mm": grouped,
    "einsum": einsum,
}
