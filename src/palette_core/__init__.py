"""Palettization of PyTorch models: weights become small indices into look-up tables."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from palette_core._common.lazy import lazy_names
from palette_core.errors import PaletteError, PaletteWarning
from palette_core.version import __version__

if TYPE_CHECKING:
    from palette_core.allocation import Allocation, Compared, allocate, compare_predictions
    from palette_core.config import (
        KMeansPalettizerConfig,
        ModuleKMeansPalettizerConfig,
        OpKMeansPalettizerConfig,
        PATSchedule,
        VectorKMeansConfig,
    )
    from palette_core.config.spec import (
        PalettizationSpec,
        PerGroupedChannelGranularity,
        PerTensorGranularity,
        QuantizationScheme,
        QuantizationSpec,
        default_weight_palettization_spec,
    )
    from palette_core.palettizer import ExportBackend, KMeansPalettizer
    from palette_core.storage.bits import bits_per_weight
    from palette_core.storage.model_checkpoints import (
        load_checkpoint,
        read_checkpoint,
        save_checkpoint,
    )
    from palette_core.tensors.palettized import PalettizedTensor

__all__ = [
    "Allocation",
    "Compared",
    "ExportBackend",
    "KMeansPalettizer",
    "KMeansPalettizerConfig",
    "ModuleKMeansPalettizerConfig",
    "OpKMeansPalettizerConfig",
    "PATSchedule",
    "PaletteError",
    "PaletteWarning",
    "PalettizationSpec",
    "PalettizedTensor",
    "PerGroupedChannelGranularity",
    "PerTensorGranularity",
    "QuantizationScheme",
    "QuantizationSpec",
    "VectorKMeansConfig",
    "__version__",
    "allocate",
    "bits_per_weight",
    "compare_predictions",
    "default_weight_palettization_spec",
    "load_checkpoint",
    "read_checkpoint",
    "save_checkpoint",
]

# So that neither the command line nor a plug-in's module of hooks imports torch.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "palette_core.allocation": ["Allocation", "Compared", "allocate", "compare_predictions"],
        "palette_core.config": [
            "KMeansPalettizerConfig",
            "ModuleKMeansPalettizerConfig",
            "OpKMeansPalettizerConfig",
            "PATSchedule",
            "VectorKMeansConfig",
        ],
        "palette_core.config.spec": [
            "PalettizationSpec",
            "PerGroupedChannelGranularity",
            "PerTensorGranularity",
            "QuantizationScheme",
            "QuantizationSpec",
            "default_weight_palettization_spec",
        ],
        "palette_core.palettizer": ["ExportBackend", "KMeansPalettizer"],
        "palette_core.storage.bits": ["bits_per_weight"],
        "palette_core.storage.model_checkpoints": [
            "load_checkpoint",
            "read_checkpoint",
            "save_checkpoint",
        ],
        "palette_core.tensors.palettized": ["PalettizedTensor"],
    },
)

# Whoever loads a saved program has imported torch, and needs the operator that stands in it.
if sys.modules.get("torch") is not None:
    import_module("palette_core.tensors.operators")
