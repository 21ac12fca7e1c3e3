"""Granularities at work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from palette_core.errors import IncompatibleShapeError
from palette_core.plugins.granularities import Granularity
from palette_core.plugins.guards import shown
from palette_core.plugins.kinds import GRANULARITY
from palette_core.plugins.making import made_before

if TYPE_CHECKING:
    from palette_core.tensors.layout import Shape


def block_shape(granularity: Granularity, shape: Shape, axis: int, tensor: str) -> Shape:
    """Return how many elements of each axis one block spans.

    Args:
        granularity: built-in, or a plug-in's.
        shape: of the weight.
        axis: its output-channel axis.
        tensor: its name.

    Raises:
        IncompatibleShapeError: the granularity refuses the shape.
        PlanError: it fails, or returns what is no block of this shape.
    """
    made = made_before(GRANULARITY, granularity.type, granularity, tensor)
    block: Any = made.ask(
        lambda granularity: granularity.block_shape(shape, axis),
        about=f" for shape {shape}",
        passes=(IncompatibleShapeError,),
    )
    fits = isinstance(block, Sequence) and len(block) == len(shape)
    if not fits or not all(
        type(step) is int and step > 0 and extent % step == 0
        for extent, step in zip(shape, block, strict=True)
    ):
        raise made.wrong(
            f"cuts shape {shape} into {shown(block)}; expected {len(shape)} positive integers, "
            "each dividing its axis, or an IncompatibleShapeError"
        )
    return tuple(block)


def described(granularity: Granularity, axis: int, tensor: str) -> str:
    """Return a granularity in a few characters.

    Raises:
        PlanError: it fails to say so.
    """
    made = made_before(GRANULARITY, granularity.type, granularity, tensor)
    text: object = made.ask(lambda granularity: granularity.describe(axis))
    if not isinstance(text, str):
        raise made.wrong(f"describes itself as {shown(text)}, which is no text")
    return text
