"""Demands on single tensors: left dense, bits given, or at least so many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from palette_core.config.patterns import NameIndex, check_pattern
from palette_core.config.spec import PalettizationSpec
from palette_core.errors import AllocationError
from palette_core.planning import Plan

BITS: tuple[int, ...] = get_args(PalettizationSpec.model_fields["n_bits"].annotation)
"""What a palette may have."""


@dataclass(frozen=True)
class Limits:
    """The bits that a tensor may have.

    Attributes:
        fixed: just these, or None.
        minimum: at least these.
    """

    fixed: int | None = None
    minimum: int = 1

    def allow(self, bits: int) -> bool:
        """Return whether a tensor may have so many bits."""
        return bits == self.fixed if self.fixed is not None else bits >= self.minimum


def constrained(
    plan: Plan, fixed: Mapping[str, int], minimum: Mapping[str, int], exclude: Iterable[str]
) -> tuple[Plan, dict[str, Limits]]:
    """Return the plan without excluded tensors, and the limits of each of the others.

    Of several minimums for a tensor the largest holds.

    Raises:
        AllocationError: bits that no palette has, demands that contradict each other, or an
            expression that matches no tensor.
    """
    excluded = _matching(plan, exclude, "exclude")
    kept = tuple(t for t in plan if t.name not in excluded)
    if not kept:
        raise AllocationError("no tensor is left to palettize: exclude matches all of them")
    limits = {tensor.name: Limits() for tensor in kept}
    for pattern, bits in minimum.items():
        least = _bits(bits, "minimum", pattern, range(1, max(BITS) + 1))
        for name in _matching(plan, [pattern], "minimum", excluded):
            limits[name] = Limits(minimum=max(least, limits[name].minimum))
    for pattern, bits in fixed.items():
        exact = _bits(bits, "fixed", pattern, BITS)
        for name in _matching(plan, [pattern], "fixed", excluded):
            limits[name] = _fixed(name, exact, limits[name])
    return Plan(kept, plan.skipped, plan.dense, plan.notes), limits


def _fixed(name: str, bits: int, limits: Limits) -> Limits:
    if limits.fixed not in (None, bits):
        raise AllocationError(
            f"fixed gives {name} both {limits.fixed} and {bits} bits; let one expression match it"
        )
    if bits < limits.minimum:
        raise AllocationError(
            f"fixed gives {name} {bits} bits, and minimum asks for at least {limits.minimum}; "
            "change one of them"
        )
    return Limits(bits, limits.minimum)


def _bits(value: Any, what: str, pattern: str, known: Iterable[int]) -> int:
    known = tuple(known)
    if type(value) is int and value in known:
        return value
    *most, last = known
    raise AllocationError(
        f"{what}: {pattern!r}: bits must be {', '.join(map(str, most))} or {last}, got {value!r}"
    )


def _matching(
    plan: Plan, patterns: Iterable[str], what: str, excluded: Iterable[str] = ()
) -> list[str]:
    """Return the tensors, but excluded ones, of which some name is matched as a whole."""
    found: dict[str, None] = {}
    first_name = {owner.name: tensor.name for tensor in plan for owner in tensor.owners}
    index = NameIndex(first_name)
    for pattern in patterns:
        try:
            named = index.matching(check_pattern(pattern))
        except ValueError as error:
            raise AllocationError(f"{what}: {error}") from None
        matches = list(dict.fromkeys(first_name[name] for name in named))
        left = [name for name in matches if name not in excluded]
        if matches and not left:
            raise AllocationError(
                f"{what}: {pattern!r} matches only what exclude leaves dense: {', '.join(matches)}"
            )
        if not matches:
            raise AllocationError(
                f"{what}: {pattern!r} matches no tensor to be palettized; it must match whole "
                f"names, such as {', '.join(t.name for t in list(plan)[:3])}"
            )
        found |= dict.fromkeys(left)
    return list(found)
