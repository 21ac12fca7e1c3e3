"""The front door for an ``nn.Module``: prepare, calibrate, train, finalize, export."""

from palette_core.palettizer.palettizer import KMeansPalettizer
from palette_core.palettizer.targets import ExportBackend

__all__ = ["ExportBackend", "KMeansPalettizer"]
