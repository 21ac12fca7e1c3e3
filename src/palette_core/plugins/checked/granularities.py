"""Granularities at work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from palette_core.errors import IncompatibleShapeError, PlanError
from palette_core.plugins.catalog import get_catalog
from palette_core.plugins.granularities import Granularity
from palette_core.plugins.guards import guarded

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
    who = f"{tensor}: granularity {_named(granularity)}"
    block: Any = guarded(
        who,
        PlanError,
        lambda: granularity.block_shape(shape, axis),
        tensor=tensor,
        about=f" for shape {shape}",
        passes=(IncompatibleShapeError,),
    )
    fits = isinstance(block, Sequence) and len(block) == len(shape)
    if not fits or not all(
        type(step) is int and step > 0 and extent % step == 0
        for extent, step in zip(shape, block, strict=True)
    ):
        raise PlanError(
            f"{who} cuts shape {shape} into {block!r}; "
            f"expected {len(shape)} positive integers, each dividing its axis, or an "
            "IncompatibleShapeError"
        )
    return tuple(block)


def described(granularity: Granularity, axis: int, tensor: str) -> str:
    """Return a granularity in a few characters.

    Raises:
        PlanError: it fails to say so.
    """
    who = f"{tensor}: granularity {_named(granularity)}"
    text: object = guarded(who, PlanError, lambda: granularity.describe(axis), tensor=tensor)
    if not isinstance(text, str):
        raise PlanError(f"{who} describes itself as {text!r}, which is no text")
    return text


def _named(granularity: Granularity) -> str:
    owners = [
        f" ({item.distribution})"
        for item in get_catalog().granularities
        if item.entry.model is type(granularity)
    ]
    return f"{granularity.type!r}{''.join(owners[:1])}"
