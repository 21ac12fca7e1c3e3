"""A palettized weight at rest: packed modules and where they stand, checkpoints, files, sizes."""

from palette_core.storage.checkpoint import load_checkpoint, save_checkpoint
from palette_core.storage.checkpoint_file import Checkpoint, read_checkpoint
from palette_core.storage.packed_weight import PackedWeight, PaletteModule
from palette_core.storage.sites import PaletteSite, Place, install_packed, palette_sites

__all__ = [
    "Checkpoint",
    "PackedWeight",
    "PaletteModule",
    "PaletteSite",
    "Place",
    "install_packed",
    "load_checkpoint",
    "palette_sites",
    "read_checkpoint",
    "save_checkpoint",
]
