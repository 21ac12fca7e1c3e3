"""The configuration: what to palettize, and how."""

from palette_core.config.model import KMeansPalettizerConfig
from palette_core.config.module import ModuleKMeansPalettizerConfig, PATSchedule
from palette_core.config.op import OpKMeansPalettizerConfig, lookup_state

__all__ = [
    "KMeansPalettizerConfig",
    "ModuleKMeansPalettizerConfig",
    "OpKMeansPalettizerConfig",
    "PATSchedule",
    "lookup_state",
]
