"""The same weight, spec and sensitivities through the public API of both libraries."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import coreai_opt.palettization as their_api
import coreai_opt.palettization.spec as their_spec
import numpy as np
import torch
from peer_cases import Case
from torch import Tensor, nn

import palette_core as our_api

OURS = SimpleNamespace(
    Palettizer=our_api.KMeansPalettizer,
    Config=our_api.KMeansPalettizerConfig,
    ModuleConfig=our_api.ModuleKMeansPalettizerConfig,
    Spec=our_api.PalettizationSpec,
    Grouped=our_api.PerGroupedChannelGranularity,
    PerTensor=our_api.PerTensorGranularity,
)
THEIRS = SimpleNamespace(
    Palettizer=their_api.KMeansPalettizer,
    Config=their_api.KMeansPalettizerConfig,
    ModuleConfig=their_api.ModuleKMeansPalettizerConfig,
    Spec=their_api.PalettizationSpec,
    Grouped=their_spec.PerGroupedChannelGranularity,
    PerTensor=their_spec.PerTensorGranularity,
)
Library = SimpleNamespace | ModuleType


def decoded(library: Library, case: Case, weight: Tensor, sensitivities: Path | None) -> Tensor:
    """Return the palettized weight as the library decodes it, in float64."""
    model, inputs = _model(weight)
    # The reference draws from the global generators; ours leaves them alone.
    torch.manual_seed(0)
    np.random.seed(0)
    palettizer = library.Palettizer(model, _config(library, case))
    path = None if sensitivities is None else str(sensitivities)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(coreai_opt|torch)\b")
        # Some cases are of 256 entries for a few hundred weights.
        warnings.filterwarnings("ignore", "palettes larger than their weights")
        logging.getLogger("coreai_opt").setLevel(logging.ERROR)
        prepared = palettizer.prepare(inputs, path)
    return prepared[0].weight.detach().double()


def write_sensitivities(value: Tensor | None, folder: Path) -> Path | None:
    """Write a file that both read, under the name that the reference gives."""
    if value is None:
        return None
    path = folder / "sensitivities.pt"
    torch.save({"0.parametrizations.weight.original": value}, path)
    return path


def _config(library: Library, case: Case) -> Any:
    if case.granularity == "tensor":
        granularity = library.PerTensor()
    else:
        axis, size = case.axis_and_size
        granularity = library.Grouped(axis=axis, group_size=size)
    spec = library.Spec(n_bits=case.bits, granularity=granularity, cluster_dim=case.cluster_dim)
    return library.Config(
        global_config=library.ModuleConfig(
            op_state_spec={"weight": spec}, enable_fast_kmeans_mode=case.algorithm == "fast"
        )
    )


def _model(weight: Tensor) -> tuple[nn.Module, tuple[Tensor]]:
    rows, columns = weight.shape[:2]
    if weight.dim() == 2:
        layer: nn.Module = nn.Linear(columns, rows, bias=False)
        inputs = torch.zeros(1, columns, dtype=weight.dtype)
    else:
        layer = nn.Conv2d(columns, rows, 1, bias=False)
        inputs = torch.zeros(1, columns, 2, 2, dtype=weight.dtype)
    layer.weight = nn.Parameter(weight.clone())
    return nn.Sequential(layer).eval(), (inputs,)
