"""The configuration: what to palettize, and how."""

from typing import TYPE_CHECKING

from palette_core._common.lazy import lazy_names

if TYPE_CHECKING:
    from palette_core.config.model import KMeansPalettizerConfig
    from palette_core.config.module import ModuleKMeansPalettizerConfig, PATSchedule
    from palette_core.config.op import OpKMeansPalettizerConfig
    from palette_core.config.vectors import VectorKMeansConfig

__all__ = [
    "KMeansPalettizerConfig",
    "ModuleKMeansPalettizerConfig",
    "OpKMeansPalettizerConfig",
    "PATSchedule",
    "VectorKMeansConfig",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "palette_core.config.model": ["KMeansPalettizerConfig"],
        "palette_core.config.module": ["ModuleKMeansPalettizerConfig", "PATSchedule"],
        "palette_core.config.op": ["OpKMeansPalettizerConfig"],
        "palette_core.config.vectors": ["VectorKMeansConfig"],
    },
)
