"""Order in which a model uses its weights, over all batches."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from palette_core._common.pytrees import deep_copy, floating, is_closed
from palette_core.statistics.activations.collect import CallKey
from palette_core.statistics.activations.runs import Runner, Stop
from palette_core.statistics.activations.stages import stage_of
from palette_core.statistics.activations.watch import OnOutput, OnSeen, Seen
from palette_core.tensors.input_views import InputView

_Item = TypeVar("_Item", bound=Hashable)
_Inputs = tuple[int, ...]  # numbers of what an operation got


@dataclass(frozen=True)
class Step:
    """Weights that are palettized together: of one stage, with one input."""

    stage: str | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class Structure:
    """Structure of the unchanged model on some batches.

    Attributes:
        steps: all weights that are used, in an order in which every batch uses them.
        calls: how often a weight is used in a run; None where that depends on the batch.
        once: stages that may answer from memory, and are judged by what they return: they run at
            most once in a run, and do nothing but return floating tensors, in what can be copied
            and looked into. Weights of the others are judged by the model's outputs.
        outputs: by batch what each of these returns, where that was asked for.
        shapes: by call, of what weights are multiplied with.
        views: how that is seen as vectors, at the first call of a weight where it is understood.
    """

    steps: tuple[Step, ...]
    calls: Mapping[str, int | None]
    once: frozenset[str]
    outputs: Mapping[int, Mapping[str, Any]]
    shapes: Mapping[CallKey, tuple[torch.Size, ...]]
    views: Mapping[str, InputView]

    def until(self, names: Sequence[str], see: Callable[[Seen], None]) -> Callable[[Seen], None]:
        """Return a callback for some weights that ends the run after the last of their calls.

        Where their number depends on the batch it does not: palettized weights may change it.
        """
        counts = [self.calls.get(name) for name in names]
        left = -1 if None in counts else sum(count or 0 for count in counts)

        def counting(seen: Seen) -> None:
            nonlocal left
            if seen.name not in names:
                return
            see(seen)
            left -= 1
            if left == 0:
                raise Stop

        return counting


@dataclass
class _Run:
    """One run: what was used first with which inputs, how often, what stages returned and did."""

    first: dict[str, _Inputs] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    doing_more: set[str] = field(default_factory=set)
    shapes: dict[tuple[str, int], tuple[torch.Size, ...]] = field(default_factory=dict)
    views: dict[str, InputView] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)


def find_structure(
    runner: Runner,
    batches: Iterable[int],
    *,
    keep: Collection[int],
    answers: bool = True,
    check: Callable[[int, Any], None] | None = None,
    on_seen: Callable[[int, Seen], None] | None = None,
    on_output: Callable[[int, Seen, Any], Any] | None = None,
) -> Structure:
    """Run the unchanged model on some of its batches, and return what it does.

    Args:
        runner: model, weights, stages and batches.
        batches: numbers of the batches.
        keep: numbers of the batches of which to remember what stages return.
        answers: find out which stages may answer from memory; else all that run once are said to.
        check: gets the number of each batch and what the model returned.
        on_seen: gets the number of each batch and what it uses, as it does.
        on_output: likewise, with what came of it, which it returns.

    Raises:
        CalibrationError: the model failed.
    """
    found: dict[int, _Run] = {}
    for batch in batches:
        found[batch] = run = _Run()
        also = None if on_seen is None else functools.partial(on_seen, batch)
        look = None if on_output is None else functools.partial(on_output, batch)
        result = _record(runner, batch, run, also, look, keep=batch in keep, answers=answers)
        if check is not None:
            check(batch, result)
    runs = list(found.values())
    names = {name for run in runs for name in run.first}
    ran = {name for run in runs for name in run.runs}
    # A stage that runs twice may depend on what comes between: it never answers from memory.
    more = {n for run in runs for n in ran if n in run.doing_more or run.runs.get(n, 0) > 1}
    once = frozenset(ran - more)
    counts = {name: {run.calls.get(name, 0) for run in runs} for name in names}
    return Structure(
        tuple(_steps(runner, runs, once)),
        {name: next(iter(c)) if len(c) == 1 else None for name, c in counts.items()},
        once,
        {b: {n: o for n, o in run.outputs.items() if n in once} for b, run in found.items()},
        {(n, b, c): shapes for b, run in found.items() for (n, c), shapes in run.shapes.items()},
        {name: view for run in reversed(runs) for name, view in run.views.items()},
    )


def _record(
    runner: Runner,
    batch: int,
    run: _Run,
    also: OnSeen | None,
    look: OnOutput | None,
    *,
    keep: bool,
    answers: bool,
) -> Any:
    inputs = _Identities()

    def see(seen: Seen) -> None:
        run.calls[seen.name] = run.calls.get(seen.name, 0) + 1
        raw = () if seen.what is None else seen.what.raw
        run.shapes[seen.name, seen.call] = tuple(x.shape for x in raw)
        run.first.setdefault(seen.name, inputs.of(raw))
        if seen.what is not None:
            run.views.setdefault(seen.name, seen.what.view)
        if also is not None:
            also(seen)

    def returned(name: str, output: Any) -> None:
        run.runs[name] = run.runs.get(name, 0) + 1
        if not answers:
            return
        try:
            answer = deep_copy(output)
        except TypeError:
            run.doing_more.add(name)
            return
        if not floating(answer) or is_closed(answer):
            run.doing_more.add(name)
        if keep:
            run.outputs[name] = answer

    written = run.doing_more.add if answers else None
    return runner.run(batch, see, keep=returned, on_written=written, on_output=look)


class _Identities:
    """Numbers of tensors, which, unlike their ids, are not given to others when they are gone."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._numbers = itertools.count()

    def of(self, tensors: tuple[Tensor, ...]) -> _Inputs:
        """Return the number of each."""
        return tuple(self._number(x) for x in tensors)

    def _number(self, x: Tensor) -> int:
        known = self._known.get(id(x))
        if known is None or known[0]() is not x:
            known = self._known[id(x)] = weakref.ref(x), next(self._numbers)
        return known[1]


def _steps(runner: Runner, runs: Sequence[_Run], once: frozenset[str]) -> list[Step]:
    owners = {plan.name: plan.owners[0].module for plan in runner.plans}
    stage: dict[str, str | None] = {}
    for name in {name for run in runs for name in run.first}:
        inside = stage_of(owners[name], list(runner.stages))
        stage[name] = inside if inside in once else None
    # Stages, and weights in none, in order; then weights in order inside of stages.
    units = merged([[(stage[n], None if stage[n] else n) for n in run.first] for run in runs])
    steps: list[Step] = []
    for inside, lone in units:
        if lone is not None:
            order = [lone]
        else:
            order = merged([[n for n in run.first if stage[n] == inside] for run in runs])
        for name in order:
            last = steps[-1] if steps else None
            if last is not None and last.stage == inside and _one_input(last.names[-1], name, runs):
                steps[-1] = Step(inside, (*last.names, name))
            else:
                steps.append(Step(inside, (name,)))
    return steps


def _one_input(a: str, b: str, runs: Sequence[_Run]) -> bool:
    """Return whether two weights are multiplied with the same tensors wherever one is used."""
    return all(
        bool(run.first.get(a)) and run.first.get(a) == run.first.get(b)
        for run in runs
        if a in run.first or b in run.first
    )


def merged(orders: Iterable[Iterable[_Item]]) -> list[_Item]:
    """Return what is in any of the orders, once, such that all orders are kept where possible.

    Of what may come next, the one met first does.
    """
    needs: dict[_Item, set[_Item]] = {}
    for order in orders:
        items = list(dict.fromkeys(order))
        for before, item in zip([None, *items], items, strict=False):
            needs.setdefault(item, set()).update(() if before is None else (before,))
    out: list[_Item] = []
    while needs:
        usual = next(iter(needs))  # of a circle, where nothing is free
        item = next((item for item, missing in needs.items() if not missing), usual)
        out.append(item)
        del needs[item]
        for missing in needs.values():
            missing.discard(item)
    return out
