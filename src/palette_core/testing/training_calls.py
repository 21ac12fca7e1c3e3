"""Checks of what training strategies do between steps and in the end, called directly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from palette_core.plugins import TrainingStrategy
from palette_core.plugins.kinds import TRAINING_STRATEGY
from palette_core.plugins.training_problem import TrainingProblem
from palette_core.testing._kit import Subject, check, demand
from palette_core.testing._probes import bits, global_rng_untouched, other_global_rng
from palette_core.testing._training_problems import BITS, tensors_of, training_problems, with_codes

_KIND = TRAINING_STRATEGY
Call = Callable[[TrainingProblem], Any]


def _moves(entry: Any) -> bool:
    return bool(entry.moves_lut)


def _calls(subject: Subject, method: str) -> Iterator[tuple[str, Call, TrainingProblem]]:
    """Yield a method of a new strategy with each problem, by every set of options."""
    for options in subject.options:
        for what, problem in training_problems(subject.entry):
            call = getattr(subject.entry.factory(options), method)
            yield f"{method} ({what})", torch.no_grad()(call), problem


@check(_KIND)
def inputs_untouched(subject: Subject) -> None:
    """Forward and backward passes write to neither the dense weight nor the palette."""
    for options in subject.options:
        for what, given in training_problems(subject.entry):
            dense = given.weight.detach().clone().requires_grad_()
            problem = replace(given, weight=dense)
            before = {name: bits(part) for name, part in tensors_of(problem).items()}
            made = subject.entry.factory(options).forward(problem)
            if made.requires_grad:
                made.float().square().mean().backward()
            _demand_unwritten(subject, f"forward ({what})", problem, before)


@check(_KIND)
def harden_codes(subject: Subject) -> None:
    """`harden` returns None, or codes [B, N] in uint8, below the number of entries."""
    for what, harden, problem in _calls(subject, "harden"):
        codes: object = harden(problem)
        if codes is None:
            continue
        demand(subject, isinstance(codes, Tensor), f"{what} returned {type(codes).__name__}")
        assert isinstance(codes, Tensor)
        expected = problem.codes()
        demand(
            subject,
            codes.shape == expected.shape and codes.dtype == expected.dtype,
            f"{what} returned {codes.dtype} of shape {tuple(codes.shape)}, expected "
            f"{expected.dtype} of shape {tuple(expected.shape)}",
        )
        highest = int(codes.max())
        demand(subject, highest < 1 << BITS, f"{what} returned code {highest} of {1 << BITS}")


@check(_KIND)
def harden_repeatable(subject: Subject) -> None:
    """The same weight and tables harden alike, at any step and in any global random state."""
    for what, harden, problem in _calls(subject, "harden"):
        made = []
        for seed in (0, 1, 2):
            with other_global_rng(seed):
                made.append(bits(harden(replace(problem, step=problem.step + seed))))
        demand(subject, made[0] == made[1] == made[2], f"{what} gave other codes when repeated")


@check(_KIND)
def harden_settles(subject: Subject) -> None:
    """Codes that harden has returned stay, once they are the present assignment."""
    for what, harden, problem in _calls(subject, "harden"):
        codes = harden(problem)
        if codes is None:
            continue
        again = harden(with_codes(problem, codes))
        same = again is None or bits(again) == bits(codes)
        demand(subject, same, f"{what} changed the assignment that it had returned itself")


@check(_KIND)
def harden_pure(subject: Subject) -> None:
    """While hardening, nothing in the problem is written to, nor are global random states."""
    _demand_pure(subject, "harden")


@check(_KIND)
def advance_declared(subject: Subject) -> None:
    """An entry declares moves_lut if, and only if, its strategy has an advance of its own."""
    for options in subject.options:
        strategy = subject.entry.factory(options)
        own = type(strategy).advance is not TrainingStrategy.advance
        told = "moves_lut" if subject.entry.moves_lut else "no moves_lut"
        has = "an" if own else "no"
        text = f"declares {told}, and {type(strategy).__name__} has {has} advance of its own"
        demand(subject, own == subject.entry.moves_lut, text)


@check(_KIND, applies=_moves)
def advance_tables(subject: Subject) -> None:
    """`advance` returns None, or finite tables [B, K, D] in a floating dtype."""
    for what, advance, problem in _calls(subject, "advance"):
        lut: object = advance(problem)
        if lut is None:
            continue
        demand(subject, isinstance(lut, Tensor), f"{what} returned {type(lut).__name__}")
        assert isinstance(lut, Tensor)
        demand(
            subject,
            lut.shape == problem.lut.shape and lut.dtype.is_floating_point,
            f"{what} returned {lut.dtype} of shape {tuple(lut.shape)}, expected floats of shape "
            f"{tuple(problem.lut.shape)}",
        )
        demand(subject, bool(lut.isfinite().all()), f"{what} returned NaN or infinite entries")


@check(_KIND, applies=_moves)
def advance_repeatable(subject: Subject) -> None:
    """The same problem advances alike, in any global random state, so that ranks agree."""
    for what, advance, problem in _calls(subject, "advance"):
        made = []
        for seed in (0, 1, 2):
            with other_global_rng(seed):
                made.append(bits(advance(problem)))
        demand(subject, made[0] == made[1] == made[2], f"{what} gave other tables when repeated")


@check(_KIND, applies=_moves)
def advance_pure(subject: Subject) -> None:
    """While advancing, nothing in the problem is written to, nor are global random states."""
    _demand_pure(subject, "advance")


def _demand_pure(subject: Subject, method: str) -> None:
    for what, call, problem in _calls(subject, method):
        before = {name: bits(part) for name, part in tensors_of(problem).items()}
        with global_rng_untouched(subject):
            call(problem)
        _demand_unwritten(subject, what, problem, before)


def _demand_unwritten(
    subject: Subject, what: str, problem: TrainingProblem, before: dict[str, bytes]
) -> None:
    written = [name for name, part in tensors_of(problem).items() if bits(part) != before[name]]
    demand(subject, not written, f"{what} has written to {', '.join(written)}")
