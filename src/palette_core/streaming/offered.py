"""Models of checkpoints that installed distributions offer to build."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from torch import nn

from palette_core.errors import CheckpointError, PaletteError, named_text_of
from palette_core.plugins.blocking import BlockList
from palette_core.streaming.skeleton import Skeleton

GROUP = "palette_core.skeletons"
"""Entry points of this group are callables that get the folder of a checkpoint, and return its
model without weights, as an ``nn.Module`` or a `Skeleton`, or None where it is none of theirs."""


def offered_skeleton(folder: Path) -> Skeleton:
    """Return the model of a checkpoint from the first distribution, by name, that builds it.

    Raises:
        CheckpointError: none does, or one fails.
    """
    block = BlockList.read()
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    names = []
    for point in points:
        owner = "unknown" if point.dist is None else point.dist.name
        if block.has_distribution(owner):
            continue
        names.append(point.name)
        try:
            made = point.load()(folder)
        except PaletteError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"{owner} failed to build the model of {folder}: {named_text_of(error)}"
            ) from error
        if isinstance(made, nn.Module):
            made = Skeleton(made)
        if isinstance(made, Skeleton):
            return made
        if made is not None:
            raise CheckpointError(
                f"{point.name!r} of {owner} returned a {type(made).__name__} for {folder}; "
                "expected a torch.nn.Module, a Skeleton, or None"
            )
    asked = f"none of {', '.join(names)} builds" if names else "nothing is installed that builds"
    raise CheckpointError(
        f"calibration runs the model of {folder}, and {asked} it; give the model (skeleton=, or "
        f"--model FACTORY), or install a plug-in that does: one with an entry point of {GROUP!r}"
    )
