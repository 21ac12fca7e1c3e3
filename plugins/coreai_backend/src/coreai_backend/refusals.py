"""Weights that a Core AI program cannot hold, known before anything is clustered."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from palette_core.errors import BackendError
from palette_core.plugins import Refusal, TensorFacts
from palette_core.storage import palette_sites
from palette_core.tensors import FP8_DTYPES, dtype_name

INDEX_BITS = (1, 2, 3, 4, 6, 8)
LUT_DTYPES = (torch.int8, torch.uint8, *FP8_DTYPES)
WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def refusal(facts: TensorFacts) -> Refusal | None:
    """Return why a tensor cannot be exported, or None.

    Grids of any layout, vectors along any axis, 8-bit LUTs and scales per channel or block all
    have a form of their own in the file, in any combination, so little is left to refuse.
    """
    spec = facts.spec
    if facts.dtype not in WEIGHT_DTYPES:
        return Refusal(_no_weights(facts.dtype))
    if facts.op_type == "conv_transpose3d":
        return Refusal(
            "coreai-torch has no transposed 3-D convolution, and for the one that is written "
            "instead the weight is turned round, unpacked, at every run; leave it out of the config"
        )
    if spec.n_bits not in INDEX_BITS:
        wider = min(bits for bits in INDEX_BITS if bits > spec.n_bits)
        return Refusal(
            f"Core AI has no {spec.n_bits}-bit indices, only {', '.join(map(str, INDEX_BITS))}",
            spec.model_copy(update={"n_bits": wider}),
        )
    if spec.lut_qspec is not None and spec.lut_qspec.dtype not in LUT_DTYPES:
        return Refusal(
            f"Core AI's look-up tables are not stored in {dtype_name(spec.lut_qspec.dtype)}",
            spec.model_copy(update={"lut_qspec": None}),
        )
    return None if spec.sparsity_detection_threshold is None else _sparse_refusal(facts)


def _sparse_refusal(facts: TensorFacts) -> Refusal | None:
    spec, grid = facts.spec, facts.layout.grid
    if facts.in_program:
        return Refusal(
            "sparse weights are not written into programs that exist", spec.stored_as("indices")
        )
    if spec.cluster_dim > 1 and grid[0] != facts.layout.n_blocks:
        scalar: dict[str, Any] = {"cluster_dim": 1, "algorithm": None, "algorithm_options": {}}
        return Refusal(_no_grid(grid), spec.model_copy(update=scalar))
    return None


def check_stored(model: nn.Module) -> None:
    """Refuse palettized weights that came by no plan, out of a checkpoint, as planning would.

    Raises:
        BackendError: naming the weight.
    """
    for site in palette_sites(model):
        palettized = site.palette.palettized()
        dtype, grid = palettized.dtype, palettized.grid
        if dtype not in WEIGHT_DTYPES:
            raise BackendError(f"{site.name}: {_no_weights(dtype)}")
        listed = palettized.mask is not None and palettized.cluster_dim > 1
        if listed and grid[0] != math.prod(grid):
            raise BackendError(f"{site.name}: {_no_grid(grid)}")


def _no_grid(grid: tuple[int, ...]) -> str:
    return (
        "Core AI lists vectors of a sparse weight row by row, and tables of a grid "
        f"{grid} stand for parts of rows: take groups of axis 0, or scalars"
    )


def _no_weights(dtype: torch.dtype) -> str:
    return f"Core AI has no {dtype_name(dtype)} weights; cast the model to float32 first"
