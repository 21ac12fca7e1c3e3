"""Palettization of PyTorch models: weights become small indices into look-up tables."""

from palette_core.allocation import Allocation, Compared, allocate, compare_predictions
from palette_core.config import (
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    OpKMeansPalettizerConfig,
    PATSchedule,
)
from palette_core.config.spec import (
    PalettizationSpec,
    PerGroupedChannelGranularity,
    PerTensorGranularity,
    QuantizationScheme,
    QuantizationSpec,
    default_weight_palettization_spec,
)
from palette_core.errors import PaletteError, PaletteWarning
from palette_core.palettizer import ExportBackend, KMeansPalettizer
from palette_core.storage.bits import bits_per_weight
from palette_core.storage.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.version import __version__

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
    "__version__",
    "allocate",
    "bits_per_weight",
    "compare_predictions",
    "default_weight_palettization_spec",
    "load_checkpoint",
    "read_checkpoint",
    "save_checkpoint",
]
