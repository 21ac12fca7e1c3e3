"""A small program: one operation with its arguments, and inputs to try it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Program:
    """One operation with its arguments.

    Attributes:
        name: unique, in words.
        make: returns the module to export; the same one every time.
        inputs: positional inputs that are tensors.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *inputs: Tensor) -> Any:
        """Call it."""
        return self._function(*inputs)


def calls(functions: dict[str, Callable[..., Any]], *inputs: Tensor) -> list[Program]:
    """Return a program for each function, all on the same inputs."""
    return [
        Program(name, partial(_called, function), inputs) for name, function in functions.items()
    ]


def modules(makers: dict[str, Callable[[], nn.Module]], *inputs: Tensor) -> list[Program]:
    """Return a program for each module, all on the same inputs."""
    return [Program(name, partial(_seeded, make), inputs) for name, make in makers.items()]


def _called(function: Callable[..., Any]) -> nn.Module:
    return Call(function).eval()


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def normal(*shape: int, seed: int = 1) -> Tensor:
    """Return standard normal numbers, the same ones every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
