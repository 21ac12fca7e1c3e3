"""The front door for an ``nn.Module``: prepare, calibrate, train, finalize, export."""

from palette_core.palettizer.exporting import ExportBackend
from palette_core.palettizer.palettizer import KMeansPalettizer

__all__ = ["ExportBackend", "KMeansPalettizer"]
