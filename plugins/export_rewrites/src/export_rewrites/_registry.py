"""The table of rewrites, filled by the modules that hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


def rewrites(*ops: OpOverload, why: str) -> Callable[[Function], Function]:
    """Enter a function as the rewrite of operations that take the same arguments."""

    def enter(function: Function) -> Function:
        for op in ops:
            if op in REWRITES:
                raise ValueError(f"{op} has a rewrite already")
            REWRITES[op] = Rewrite(op, function, why)
        return function

    return enter
