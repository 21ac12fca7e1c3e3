"""Layers with made-up moments, and the objective by its definition."""

import torch

from palette_core.builtins.clusterers.layerwise.clusterer import Gptq, Lnq
from palette_core.builtins.clusterers.layerwise.options import GptqOptions, LnqOptions
from palette_core.plugins import ClusterProblem, InputMoments
from palette_core.tensors.layout import BlockLayout

DAMPING = 0.01
ALGORITHMS = [Gptq(GptqOptions(damping=DAMPING)), Lnq(LnqOptions(damping=DAMPING))]


def moments_for(layout, groups=1, rows=(0,), share=None, rank=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    blank = InputMoments(torch.zeros(groups, 1), layout, 1, rows)
    size = blank.to_matrices(torch.zeros(layout.shape)).shape[2]
    x = torch.randn(groups, size, rank or 3 * size, generator=g)
    x = x * torch.linspace(0.2, 2.0, size)[None, :, None] + torch.randn(
        groups, 1, x.shape[2], generator=g
    )
    return InputMoments(x @ x.transpose(1, 2) / x.shape[2], layout, x.shape[2], rows, share)


def objective(weight, decoded, moments, damping=DAMPING):
    """tr(ΔW H ΔWᵀ) with damping, in float64, by the definition."""
    error = moments.to_matrices(weight.double() - decoded.double())
    h = moments.hessian.double()
    mean = moments.diagonal().double().mean(dim=1)[:, None, None]
    h = h + damping * mean * torch.eye(h.shape[-1]).double()
    rows = ((error @ h) * error).sum(2).flatten()
    return float(rows.sum() if moments.share is None else (rows * moments.share.double()).sum())


def solve(algorithm, weight, layout, moments, k, quantizer=None):
    book = algorithm.fit(ClusterProblem(layout.split(weight), k, None, moments, quantizer))
    decoded = layout.merge(
        torch.stack([book.lut[b][book.codes[b].long()] for b in range(len(book.lut))])
    )
    return book, objective(weight, decoded.to(weight.dtype), moments)


LAYOUTS = {
    "rows": (BlockLayout((8, 12), (4, 12)), 1, (0,)),
    "tensor": (BlockLayout((8, 12), (8, 12)), 1, (0,)),
    "columns": (BlockLayout((8, 12), (8, 4)), 1, (0,)),
    "grid": (BlockLayout((8, 12), (4, 3)), 1, (0,)),
    "single rows": (BlockLayout((5, 7), (1, 7)), 1, (0,)),
    "one column": (BlockLayout((16, 1), (8, 1)), 1, (0,)),
    "vectors": (BlockLayout((8, 12), (4, 12), 2), 1, (0,)),
    "output groups": (BlockLayout((8, 12), (4, 12)), 4, (0,)),
    "grouped convolution": (BlockLayout((8, 4, 3), (4, 4, 3)), 2, (0,)),
    "depthwise": (BlockLayout((8, 1, 3, 3), (4, 1, 3, 3)), 8, (0,)),
    "depthwise vectors": (BlockLayout((8, 1, 3, 3), (4, 1, 3, 3), 2), 8, (0,)),
    "transposed": (BlockLayout((6, 8, 2), (6, 4, 2), 1, 1), 2, (1,)),
    "transposed, across groups": (BlockLayout((6, 4, 2), (2, 4, 2), 1, 1), 2, (1,)),
    "transposed vectors": (BlockLayout((6, 8, 2), (6, 4, 2), 2, 1), 1, (1,)),
    "experts": (BlockLayout((3, 4, 8), (3, 4, 4), 1, 2), 3, (2,)),
    "expert vectors": (BlockLayout((3, 4, 8), (1, 4, 8), 2, 2), 3, (2,)),
    "heads": (BlockLayout((6, 2, 4), (6, 1, 4), 1, 1), 1, (1, 2)),
}


def decode(book, layout, dtype=torch.float32):
    """The weight that a codebook stands for."""
    return layout.merge(book.decode().to(dtype))
