"""Views of a model's tensors: whose they are, and which axis of theirs is which."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)
_COPIES = 2  # held at once


class StateStorages:
    """Finds the one state whose memory a tensor shares.

    Args:
        states: by identity; may grow, and must keep them alive.
    """

    def __init__(self, states: Mapping[int, Tensor]) -> None:
        self._states = states
        self._seen = 0
        self._owners: dict[int, Tensor | None] = {}  # None where several states share memory
        self._copies: deque[tuple[Tensor, Tensor]] = deque(maxlen=_COPIES)

    def state_of(self, tensor: Tensor) -> Tensor | None:
        """Return the state that a tensor is a view of, or None."""
        if len(self._states) > self._seen:  # rarely; to walk past all that are seen takes time
            self._learn(islice(self._states.values(), self._seen, None))
            self._seen = len(self._states)
        place = _place(tensor)
        state = self._owners.get(place) if place else None
        return state if state is not None and state.dtype == tensor.dtype else None

    def _learn(self, states: Iterable[Tensor]) -> None:
        for state in states:
            place = _place(state)
            if place:
                self._owners[place] = None if place in self._owners else state

    def copied(self, source: Tensor, copy: Tensor) -> None:
        """Remember a copy of a state or of a view of one, or of what was picked along axis 0."""
        rest = source.dim() - 1
        if rest < 1 or copy.dim() < source.dim() or copy.shape[-rest:] != source.shape[1:]:
            return
        if self.state_of(source) is not None and self.state_of(copy) is None:
            self._copies.append((copy, source))

    def forget_copies(self) -> None:
        """Let go of the copies: they are large."""
        self._copies.clear()

    def knows(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a view of a state, or of a remembered copy."""
        return self.state_of(tensor) is not None or any(
            _place(copy) == _place(tensor) for copy, _ in self._copies
        )

    def axis_of(self, tensor: Tensor, axis: int) -> tuple[Tensor, int] | None:
        """Return the state that a tensor is a view or a copy of, and which axis of it ``axis`` is.

        None where either is not known.
        """
        for copy, source in self._copies:
            if _place(copy) == _place(tensor):
                found = axis_in_state(copy, tensor, axis)
                is_picked = copy.shape != source.shape
                if found is None or (is_picked and found <= copy.dim() - source.dim()):
                    return None  # unclear, or the axis that was picked along
                tensor, axis = source, found - copy.dim() + source.dim()
                break
        state = self.state_of(tensor)
        found = None if state is None else axis_in_state(state, tensor, axis)
        return None if state is None or found is None else (state, found)


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
    try:
        return tensor.untyped_storage().data_ptr()
    except NotImplementedError:  # wrapped by a transform of torch.func
        return 0
