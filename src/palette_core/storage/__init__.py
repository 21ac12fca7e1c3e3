"""A palettized weight at rest: stored forms, packed modules and where they stand, checkpoints."""

from typing import TYPE_CHECKING

from palette_core._common.lazy import lazy_names

if TYPE_CHECKING:
    from palette_core._common.bounded_json import read_json
    from palette_core.storage.bits import bits_per_weight
    from palette_core.storage.checkpoint_reading import (
        Checkpoint,
        CheckpointReader,
        read_checkpoint,
    )
    from palette_core.storage.checkpoint_verifying import Verification, verify_checkpoint
    from palette_core.storage.checkpoint_writing import write_checkpoint
    from palette_core.storage.folding import dense_state_dict, fold
    from palette_core.storage.model_checkpoints import load_checkpoint, save_checkpoint
    from palette_core.storage.origins import Origin, Source
    from palette_core.storage.pack import install_packed
    from palette_core.storage.packed_weight import PackedWeight, PaletteModule
    from palette_core.storage.sites import PaletteSite, Place, palette_sites

__all__ = [
    "Checkpoint",
    "CheckpointReader",
    "Origin",
    "PackedWeight",
    "PaletteModule",
    "PaletteSite",
    "Place",
    "Source",
    "Verification",
    "bits_per_weight",
    "dense_state_dict",
    "fold",
    "install_packed",
    "load_checkpoint",
    "palette_sites",
    "read_checkpoint",
    "read_json",
    "save_checkpoint",
    "verify_checkpoint",
    "write_checkpoint",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "palette_core._common.bounded_json": ["read_json"],
        "palette_core.storage.bits": ["bits_per_weight"],
        "palette_core.storage.folding": ["dense_state_dict", "fold"],
        "palette_core.storage.model_checkpoints": ["load_checkpoint", "save_checkpoint"],
        "palette_core.storage.checkpoint_reading": [
            "Checkpoint",
            "CheckpointReader",
            "read_checkpoint",
        ],
        "palette_core.storage.checkpoint_verifying": ["Verification", "verify_checkpoint"],
        "palette_core.storage.checkpoint_writing": ["write_checkpoint"],
        "palette_core.storage.origins": ["Origin", "Source"],
        "palette_core.storage.pack": ["install_packed"],
        "palette_core.storage.packed_weight": ["PackedWeight", "PaletteModule"],
        "palette_core.storage.sites": ["PaletteSite", "Place", "palette_sites"],
    },
)
