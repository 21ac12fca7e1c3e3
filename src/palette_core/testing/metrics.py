"""Checks of sensitivity metrics, on candidates made for the purpose."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from palette_core.config.granularity import PerTensorGranularity
from palette_core.plugins import Candidate, InputMoments
from palette_core.plugins.kinds import SENSITIVITY_METRIC
from palette_core.tensors.layout import BlockLayout
from palette_core.testing._kit import Subject, check, demand
from palette_core.testing._probes import bits, draw, global_rng_untouched, other_global_rng

_KIND = SENSITIVITY_METRIC
_INPUTS = 32


def _candidate(dtype: torch.dtype = torch.float32, error: float = 0.1) -> Candidate:
    """Return a linear layer's weight and one that stands for it, with all evidence there is."""
    weight = draw(12, 8, seed=1).to(dtype)
    decoded = weight + (draw(12, 8, seed=2) * error).to(dtype)
    inputs = draw(_INPUTS, 8, seed=3)

    def outputs(tensor: Tensor | None) -> Sequence[Sequence[Tensor]]:
        used = weight if tensor is None else tensor
        return [[inputs @ used.float().T], [inputs.flip(0) @ used.float().T]]

    layout = BlockLayout((12, 8), PerTensorGranularity().block_shape((12, 8), 0))
    moments = InputMoments((inputs.T @ inputs / _INPUTS)[None], layout, _INPUTS)
    return Candidate("layer.weight", weight, decoded, draw(12, 8, seed=4) ** 2, moments, outputs)


def _losses(subject: Subject, candidate: Candidate) -> Iterator[float]:
    """Yield the loss by every set of options."""
    for options in subject.options:
        yield subject.entry.factory(options).loss(candidate)


@check(_KIND)
def finite(subject: Subject) -> None:
    """The loss is a finite number of at least 0, in every floating dtype."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for loss in _losses(subject, _candidate(dtype)):
            made: object = loss
            good = isinstance(made, float) and math.isfinite(made) and made >= 0
            demand(subject, good, f"the loss of a {dtype} weight is {loss!r}")


@check(_KIND)
def nothing_lost(subject: Subject) -> None:
    """The loss is 0 where the candidate equals the weight."""
    for loss in _losses(subject, _candidate(error=0.0)):
        demand(subject, loss == 0, f"the loss of an exact candidate is {loss!r}")


@check(_KIND)
def more_error_more_loss(subject: Subject) -> None:
    """Ten times the error is predicted to lose more."""
    small, large = _candidate(error=0.01), _candidate(error=0.1)
    for a, b in zip(_losses(subject, small), _losses(subject, large), strict=True):
        demand(subject, a < b, f"errors of 0.01 and 0.1 are predicted to lose {a!r} and {b!r}")


@check(_KIND)
def pure(subject: Subject) -> None:
    """The candidate is not written to, and neither are global random states."""
    candidate = _candidate()
    hessian = candidate.moments.hessian if candidate.moments else None
    parts = (candidate.weight, candidate.decoded, candidate.squares, hessian)
    before = [bits(part) for part in parts if part is not None]
    with global_rng_untouched(subject):
        for _ in _losses(subject, candidate):
            pass
    after = [bits(part) for part in parts if part is not None]
    demand(subject, before == after, "the candidate's tensors have been written to")


@check(_KIND)
def repeatable(subject: Subject) -> None:
    """The same candidate has the same loss, whatever the global random states."""
    found = []
    for seed in (1, 2):
        with other_global_rng(seed):
            found.append(list(_losses(subject, _candidate())))
    first, losses = found
    demand(subject, first == losses, f"the losses {first} are {losses} the second time")
