"""Views of a model's tensors: whose they are, and which axis of theirs is which."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)


class StateStorages:
    """Finds the one state whose memory a tensor shares.

    Args:
        states: by identity; may grow, and must keep them alive.
    """

    def __init__(self, states: Mapping[int, Tensor]) -> None:
        self._states = states
        self._seen = 0
        self._owners: dict[int, Tensor | None] = {}  # None where several states share memory

    def state_of(self, tensor: Tensor) -> Tensor | None:
        """Return the state that a tensor is a view of, or None."""
        for known in islice(self._states.values(), self._seen, None):
            place = _place(known)
            if place:
                self._owners[place] = None if place in self._owners else known
        self._seen = len(self._states)
        place = _place(tensor)
        state = self._owners.get(place) if place else None
        return state if state is not None and state.dtype == tensor.dtype else None


def axis_in_state(state: Tensor, view: Tensor, axis: int) -> int | None:
    """Return which axis of a state one axis of a view of it runs along; None where that is unclear.

    Neighbours along the two are equally far apart in memory.
    """
    if view.shape[axis] < 2:
        return None
    same = [a for a in range(state.dim()) if state.stride(a) == view.stride(axis)]
    same = [a for a in same if state.shape[a] > 1]
    return same[0] if len(same) == 1 else None


def _place(tensor: Tensor) -> int:
    """Return where a tensor's memory begins; 0 where it has none of its own."""
    if type(tensor) not in _PLAIN or tensor.layout is not torch.strided:
        return 0
    return tensor.untyped_storage().data_ptr()
