"""Views, joins, cuts, indexing, scattering, constants."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from export_rewrites.programs._record import Program, calls, normal

_X = normal(2, 4, 6)
_M = normal(5, 5)
_ROWS = torch.tensor([3, 0, 0, 2])
_PICK = torch.tensor([[[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]] * 2)
_IMAGE = normal(1, 3, 6, 6)

SHAPES: list[Program] = [
    *calls(
        {
            "reshape": lambda x: x.reshape(2, -1),
            "flatten": lambda x: x.flatten(1),
            "unflatten": lambda x: x.unflatten(-1, (2, 3)),
            "transpose": lambda x: x.transpose(0, 2),
            "permute": lambda x: x.permute(2, 0, 1),
            "mT": lambda x: x.mT,
            "squeeze and unsqueeze": lambda x: x.unsqueeze(1).squeeze(1).unsqueeze(-1),
            "expand": lambda x: x[:, :1].expand(2, 4, 6) + x,
            "broadcast_to": lambda x: x[0, 0].broadcast_to(3, 6) * 2,
            "repeat": lambda x: x.repeat(1, 2, 1),
            "tile": lambda x: x.tile(2),
            "repeat_interleave": lambda x: x.repeat_interleave(3, 1),
            "cat": lambda x: torch.cat([x, x * 2], 1),
            "stack": lambda x: torch.stack([x, x * 2], 1),
            "split": lambda x: x.split(2, 1)[1],
            "split, sizes": lambda x: x.split([1, 3], 1)[1],
            "chunk": lambda x: x.chunk(3, -1)[2],
            "unbind": lambda x: x.unbind(1)[2],
            "unbind of six axes": lambda x: x.reshape(2, 2, 2, 1, 3, 2).unbind(1)[1],
            "max of six axes": lambda x: x.reshape(2, 2, 2, 1, 3, 2).max(2)[0],
            "booleans, padded": lambda x: ~F.pad(x > 0, (1, 2)),
            "tensor_split": lambda x: x.tensor_split(4, -1)[0],
            "slice": lambda x: x[:, 1:3, ::2],
            "slice from the end": lambda x: x[..., -3:],
            "select": lambda x: x[:, -1],
            "narrow": lambda x: x.narrow(1, 1, 2),
            "flip": lambda x: x.flip(-1),
            "roll": lambda x: x.roll(2, -1),
            "roll over two axes": lambda x: x.roll((1, -2), (1, 2)),
            "rot90": lambda x: x.rot90(1, (1, 2)),
            "movedim": lambda x: x.movedim(0, -1),
            "unfold": lambda x: x.unfold(-1, 3, 2),
            "as_strided": lambda x: x.as_strided((2, 3), (24, 6)),
            "meshgrid": lambda x: torch.meshgrid(x[0, 0], x[0, 1, :4], indexing="ij"),
            "cartesian_prod": lambda x: torch.cartesian_prod(x[0, 0, :2], x[0, 1, :3]),
            "atleast_3d": lambda x: torch.atleast_3d(x[0]),  # type: ignore[no-untyped-call]
            "new_ones": lambda x: x * x.new_ones(6),
            "new_full": lambda x: x + x.new_full((6,), 2.0),
            "zeros_like with dtype": lambda x: torch.zeros_like(x, dtype=torch.bool) | (x > 0),
            "ones_like with dtype": lambda x: torch.ones_like(x, dtype=torch.bool) & (x > 0),
            "full_like with dtype": lambda x: torch.full_like(x, 1.7, dtype=torch.int32) + 1,
            "zeros_like": lambda x: torch.zeros_like(x) + x,
            "arange": lambda x: x + torch.arange(6),
            "arange, step": lambda x: x + torch.arange(0, 3, 0.5),
            "linspace": lambda x: x * torch.linspace(0, 1, 6),
            "eye": lambda x: x @ torch.eye(6),
            "tril": lambda x: x.tril(),
            "triu, diagonal=1": lambda x: x.triu(1),
            "triu of booleans": lambda x: (x > -9).triu(1).float(),
            "index by a list": lambda x: x[:, [2, 0, 0]],
            "index by two lists": lambda x: x[[0, 1], [1, 3]],
            "index by a mask of fixed size": lambda x: torch.where(x > 0, x, x * 2),
            "index_put": lambda x: x.index_put((torch.tensor([1]),), x[:1] * 2),
            "index_put, accumulated": lambda x: x.index_put(
                (torch.tensor([1, 1]),), x[:2] * 2, accumulate=True
            ),
            "slice written": lambda x: _written(x),  # noqa: PLW0108
            "column written": lambda x: _column(x),  # noqa: PLW0108
            "pad": lambda x: F.pad(x, (1, 2)),
            "pad, value and two axes": lambda x: F.pad(x, (1, 2, 0, 1), value=3.0),
            "pad, negative": lambda x: F.pad(x, (-1, 2)),
            "pad, reflect": lambda x: F.pad(x, (1, 2), mode="reflect"),
            "pad, replicate": lambda x: F.pad(x, (1, 2), mode="replicate"),
            "pad, circular": lambda x: F.pad(x, (1, 2), mode="circular"),
            "masked_scatter": lambda x: x.masked_scatter(
                x > 0, torch.arange(48.0).reshape(2, 4, 6)
            ),
            "select_scatter": lambda x: torch.select_scatter(x, x[:, 0] * 2, 1, 2),
            "slice_scatter": lambda x: torch.slice_scatter(x, x[:, :2] * 2, 1, 1, 3),
            "einsum bij,bkj->bik": lambda x: torch.einsum("bij,bkj->bik", x, x),
            "einsum bij->bj": lambda x: torch.einsum("bij->bj", x),
            "shape as a number": lambda x: x * x.shape[-1] + x.numel(),
        },
        _X,
    ),
    *calls(
        {
            "gather": lambda x, i: x.gather(1, i),
            "scatter": lambda x, i: x.scatter(1, i.flip(1)[:, :1], x[:, :1] * 2),
            "scatter of a number": lambda x, i: x.scatter(1, i[:, :1].clamp(max=3), 7.0),
            "scatter_add": lambda x, i: x.scatter_add(1, i.clamp(max=3), x[:, :2]),
            "scatter_reduce, amax": lambda x, i: x.scatter_reduce(
                1, i.clamp(max=3), x[:, :2], "amax"
            ),
            "take_along_dim": lambda x, i: torch.take_along_dim(x, i.clamp(max=3), 1),
        },
        _X,
        _PICK.clamp(max=3),
    ),
    *calls(
        {
            "index_select": lambda m, i: m.index_select(0, i),
            "index_select of booleans": lambda m, i: ~(m > 0).index_select(0, i),
            "index_add": lambda m, i: m.index_add(0, i, m[:4]),
            "index_copy": lambda m, i: m.index_copy(0, i[1:2], m[:1] * 2),
            "index_fill": lambda m, i: m.index_fill(1, i, 0.5),
            "take": lambda m, i: m.take(i),
            "rows by a tensor": lambda m, i: m[i],
            "elements by two tensors": lambda m, i: m[i, i.flip(0)],
            "columns by a tensor": lambda m, i: m[:, i],
            "diagonal": lambda m, i: m.diagonal(),
            "diagonal, offset": lambda m, i: m.diagonal(1),
            "diag_embed": lambda m, i: torch.diag_embed(m),
            "diag of a vector": lambda m, i: torch.diag(m[0]),
            "trace": lambda m, i: m.trace(),
            "outer": lambda m, i: torch.outer(m[0], m[1]),
            "cross": lambda m, i: torch.linalg.cross(m[:, :3], m[:, 1:4]),
            "kron": lambda m, i: torch.kron(m[:2, :2], m[:2, :3]),
            "cdist": lambda m, i: torch.cdist(m, m[:3]),
            "matrix power": lambda m, i: torch.linalg.matrix_power(m, 3),
            "chain of matrices": lambda m, i: torch.linalg.multi_dot([m, m, m[:, :2]]),
            "addmm": lambda m, i: torch.addmm(m[0], m, m, beta=0.5, alpha=2.0),
            "addmv": lambda m, i: torch.addmv(m[0], m, m[1]),
            "baddbmm": lambda m, i: torch.baddbmm(m[None], m[None], m[None], beta=2.0, alpha=0.5),
            "mv": lambda m, i: m @ m[0],
            "dot": lambda m, i: torch.dot(m[0], m[1]),
            "bmm": lambda m, i: torch.bmm(m[None], m[None]),
            "matmul, broadcast": lambda m, i: m[None, None] @ m[:, :2],
            "tensordot": lambda m, i: torch.tensordot(m, m, dims=([0], [1])),
            "determinant": lambda m, i: torch.linalg.det(m),
            "matrix inverse": lambda m, i: torch.linalg.inv(m + 5 * torch.eye(5)),
        },
        _M,
        _ROWS,
    ),
    *calls(
        {
            "pixel_shuffle": lambda x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2),
            "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
            "channel_shuffle": lambda x: F.channel_shuffle(x, 3),
            "pad of images, reflect": lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"),
            "pad of images, circular": lambda x: F.pad(x, (1, 2, 2, 1), mode="circular"),
            "F.unfold": lambda x: F.unfold(x, 3, padding=1, stride=2),
            "F.fold": lambda x: F.fold(F.unfold(x, 2, stride=2), (6, 6), 2, stride=2),
            "F.fold, overlapping": lambda x: F.fold(
                F.unfold(x, 3, padding=1), (6, 6), 3, padding=1
            ),
        },
        _IMAGE,
    ),
]


def _written(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, 1:3] = y[:, :2] * 2
    return y


def _column(x: torch.Tensor) -> torch.Tensor:
    y = x * 1
    y[..., 0] = 0
    y[:, 1] += 1
    return y
