"""Threads that a run computes with itself, while others compute what is large in it."""

from __future__ import annotations

import math
import time

import torch

_MUCH = 0.05  # seconds of its own between two things that it leaves to others


class OwnThreads:
    """One thread of a run that leaves what is large to others, or all, once it cannot.

    With teams of threads for what is small, there would be more threads than cores: OpenMP then
    lets those of the others sleep between two functions, and each function waits for them to wake.

    Made on the thread of those others.
    """

    def __init__(self) -> None:
        self._all = torch.get_num_threads()
        self._alone = False
        self._since = math.inf  # it begins with much that is no computation

    def begin(self) -> None:
        """Begin with one, on the thread of the run; threads that start now get as many."""
        self._alone = True
        torch.get_num_threads()  # the first use of torch on a thread takes what is set for all
        torch.set_num_threads(1)

    def begun(self) -> None:
        """Give threads to come as many as those of the others again, on one of these."""
        torch.set_num_threads(self._all)

    def take_all(self) -> None:
        """Take all from now on, on the thread of the run: it computes what is large itself."""
        if self._alone:
            self._alone = False
            torch.set_num_threads(self._all)

    def hand_over(self) -> None:
        """Do so where the run has computed much that nobody was asked to."""
        if self._alone and time.thread_time() - self._since > _MUCH:
            self.take_all()

    def go_on(self) -> None:
        """Note that the run goes on."""
        self._since = time.thread_time()


def own_threads() -> OwnThreads | None:
    """Return them where each thread can be given a number of its own."""
    openmp = bool(torch.backends.openmp.is_available())  # type: ignore[no-untyped-call]
    return OwnThreads() if openmp else None
