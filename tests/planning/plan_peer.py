"""The same cases under the reference."""

from __future__ import annotations

import warnings

import torch
from coreai_opt.palettization import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
)
from coreai_opt.palettization.config import OpKMeansPalettizerConfig
from coreai_opt.palettization.spec import PerGroupedChannelGranularity
from plan_cases import Case, Library
from plan_models import inputs
from torch.nn.utils import parametrize

THEIRS = Library(
    K=KMeansPalettizerConfig,
    M=ModuleKMeansPalettizerConfig,
    O=OpKMeansPalettizerConfig,
    S=PalettizationSpec,
    G=PerGroupedChannelGranularity,
)


def reference_bits(case: Case) -> dict[str, int]:
    """Return the bits of every weight that the reference palettizes, tied ones once."""
    torch.manual_seed(0)
    model = case.model().eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        KMeansPalettizer(model, case.config(THEIRS)).prepare(inputs())
    found: dict[int, tuple[str, int]] = {}
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for state, chain in module.parametrizations.items():
            for part in chain:
                if hasattr(part, "centroids"):
                    full = f"{name}.{state}" if name else state
                    entries = part.centroids.shape[-2]
                    found.setdefault(id(part), (full, entries.bit_length() - 1))
    return dict(found.values())
