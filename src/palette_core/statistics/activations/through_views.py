"""Consumptions of views of a weight, such as its transpose or one expert, as the weight's own."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from palette_core.model.views import axis_in_state
from palette_core.plugins import Consumption
from palette_core.tensors.input_views import InputView, ThroughView


def through_view(what: Consumption, weight: Tensor) -> Consumption | None:
    """Return what a weight is multiplied with, where an operation received a view of it.

    Args:
        what: the consumption of the view.
        weight: whose memory the view shares.

    Returns:
        None where the view is none that is understood: a transpose, or one item of the first
        axis, transposed or not.
    """
    axes = [axis_in_state(weight, what.weight, axis) for axis in range(what.weight.dim())]
    known = [axis for axis in axes if axis is not None]
    if len(known) < len(axes) or len(set(known)) < len(known) or what.view.is_diagonal:
        return None
    if tuple(weight.shape[axis] for axis in known) != tuple(what.weight.shape):
        return None
    view = _through(what.view, known, weight, int(what.weight.storage_offset()))
    return None if view is None else replace(what, weight=weight, view=view)


def _through(view: InputView, axes: list[int], weight: Tensor, offset: int) -> ThroughView | None:
    """Return a view of the weight for one of the view whose axes are those of the weight."""
    groups = view.groups()
    rows = tuple(axes[axis] for axis in view.rows)
    columns = [axis for axis in axes if axis not in rows]
    if columns != sorted(columns):
        return None  # coordinates would be in another order
    start = offset - int(weight.storage_offset())
    if len(axes) == weight.dim():
        whole = start == 0 and (groups == 1 or axes[0] == 0)
        return ThroughView(view, groups, rows) if whole else None
    index, rest = divmod(start, weight.stride(0))
    item = sorted(axes) == [*range(1, weight.dim())] and rest == 0 and 0 <= index < len(weight)
    return ThroughView(view, len(weight), rows, index) if item and groups == 1 else None
