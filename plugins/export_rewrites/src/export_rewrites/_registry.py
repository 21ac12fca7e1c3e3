"""The table of rewrites, filled by the modules that hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload

Function = Callable[..., Any]


@dataclass(frozen=True)
class Rewrite:
    """Rewrite of an operation of torch where a converter lacks it or gets it wrong.

    Attributes:
        op: the operation.
        function: takes the same arguments and returns the same values, made of operations that
            converters have; returns NotImplemented for arguments that it has nothing better for.
        why: what is missing or wrong, where, and in which version.
    """

    op: OpOverload
    function: Function
    why: str


REWRITES: dict[OpOverload, Rewrite] = {}
# Of operations that a library of its own defines when it is imported, by name.
_FOREIGN: dict[str, tuple[Function, str]] = {}


def rewrites(*ops: OpOverload, why: str) -> Callable[[Function], Function]:
    """Enter a function as the rewrite of operations that take the same arguments."""

    def enter(function: Function) -> Function:
        for op in ops:
            if op in REWRITES:
                raise ValueError(f"{op} has a rewrite already")
            REWRITES[op] = Rewrite(op, function, why)
        return function

    return enter


def rewrites_of(name: str, why: str) -> Callable[[Function], Function]:
    """Enter a function as the rewrite of an operation that may not be defined yet."""

    def enter(function: Function) -> Function:
        _FOREIGN[name] = function, why
        return function

    return enter


def known_rewrites() -> dict[OpOverload, Rewrite]:
    """Return the rewrites of all operations that are defined by now."""
    found = dict(REWRITES)
    for name, (function, why) in _FOREIGN.items():
        namespace, _, short = name.partition("::")
        packet = getattr(getattr(torch.ops, namespace), short, None)
        if packet is not None:
            found[packet.default] = Rewrite(packet.default, function, why)
    return found
