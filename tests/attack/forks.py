"""Processes that a rig forks off."""

import os

import torch


def fork() -> int:
    """Fork as `os.fork` does, and let the child compute with one thread.

    A child has none of the threads that torch has started in its parent, and would wait for them
    for ever.
    """
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
    return child
