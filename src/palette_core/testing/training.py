"""Checks of training strategies, in a model that trains as any user's does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    PerGroupedChannelGranularity,
)
from palette_core.plugins.kinds import TRAINING_STRATEGY
from palette_core.testing._kit import Subject, check, demand
from palette_core.testing._probes import bits, draw, other_global_rng

_KIND = TRAINING_STRATEGY
_STEPS = 3
_RATE = 0.05


class _Session:
    """A small model whose first layer is palettized, and whose second stays dense."""

    def __init__(
        self,
        subject: Subject,
        options: BaseModel,
        dtype: torch.dtype = torch.float32,
        **spec: Any,
    ) -> None:
        model = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8))
        with torch.no_grad():
            for seed, parameter in enumerate(model.parameters()):
                parameter.copy_(draw(*parameter.shape, seed=seed) * 0.3)
        made = PalettizationSpec(
            n_bits=2,
            training_strategy=subject.entry.name,
            training_strategy_options=subject.in_config(options),
            **spec,
        )
        config = KMeansPalettizerConfig(
            global_config=None,
            module_name_configs={"0": ModuleKMeansPalettizerConfig(op_state_spec={"weight": made})},
        )
        self.inputs = draw(32, 16, seed=9, dtype=dtype)
        self.palettizer = KMeansPalettizer(model.to(dtype).eval(), config)
        self.model: Any = self.palettizer.prepare((self.inputs,))

    def weight(self) -> Tensor:
        """The weight as the layer sees it."""
        weight: Tensor = self.model[0].weight
        return weight

    def parts(self) -> dict[str, bytes]:
        """Bytes of weights, indices and tables; not of flags and counts."""
        return {
            name: bits(value)
            for name, value in self.model.state_dict().items()
            if value.numel() > 1
        }

    def backward(self) -> None:
        """Compute a loss and its gradients."""
        self.model.zero_grad()
        (self.model(self.inputs).float() - 1).square().mean().backward()

    def train(self, steps: int) -> None:
        """Take steps of gradient descent, in training mode."""
        for _ in range(steps):
            self.backward()
            with torch.no_grad():
                for parameter in self.model.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(_RATE * parameter.grad)
            self.palettizer.step()


def _sessions(subject: Subject) -> Iterator[_Session]:
    grouped = PerGroupedChannelGranularity(group_size=8)
    for options in subject.options:
        for dtype in (torch.float32, torch.bfloat16):
            yield _Session(subject, options, dtype)
        yield _Session(subject, options, granularity=grouped, enable_per_channel_scale=True)


@check(_KIND)
def weight(subject: Subject) -> None:
    """In training mode the weight has the shape and dtype of the dense one, and is finite."""
    for session in _sessions(subject):
        dense = session.model[0].parametrizations.weight.original
        with session.palettizer.training_mode():
            made: object = session.weight()
            demand(subject, isinstance(made, Tensor), f"returned {type(made).__name__}")
            assert isinstance(made, Tensor)
            demand(
                subject,
                made.shape == dense.shape and made.dtype == dense.dtype,
                f"returned {made.dtype} of shape {tuple(made.shape)} for a weight of "
                f"{dense.dtype} of shape {tuple(dense.shape)}",
            )
            demand(subject, bool(made.isfinite().all()), "returned NaN or infinite weights")


@check(_KIND)
def repeatable(subject: Subject) -> None:
    """A forward pass can be repeated: from the same weight and tables comes the same weight."""
    for session in _sessions(subject):
        with session.palettizer.training_mode():
            made = []
            for _ in range(3):
                # Noise may come from the global generators, which those who repeat put back.
                with other_global_rng(1):
                    made.append(bits(session.weight()))
            demand(subject, made[0] == made[1] == made[2], "two calls return two weights")


@check(_KIND)
def gradients(subject: Subject) -> None:
    """Gradients are finite, and the layers that are not palettized get theirs."""
    for session in _sessions(subject):
        with session.palettizer.training_mode():
            for _ in range(_STEPS):
                session.backward()
                for name, parameter in session.model.named_parameters():
                    gradient = parameter.grad
                    if gradient is None:
                        demand(subject, name.startswith("0."), f"{name} gets no gradient")
                        continue
                    held = bool(gradient.isfinite().all())
                    demand(subject, held, f"the gradient of {name} is NaN or infinite")
                session.train(1)


@check(_KIND)
def resumes(subject: Subject) -> None:
    """Training resumes from a state_dict: a strategy keeps nothing that is not in the model."""
    for options in subject.options:
        one, other = (_Session(subject, options) for _ in range(2))
        with one.palettizer.training_mode():
            one.train(_STEPS)
        other.model.load_state_dict(one.model.state_dict())
        made = []
        for session in (one, other):
            with session.palettizer.training_mode(), other_global_rng(1):
                made.append(bits(session.weight()))
        demand(subject, made[0] == made[1], "a model that resumes has another weight")


@check(_KIND)
def evaluation(subject: Subject) -> None:
    """After training, evaluation uses a palette, and finalizing does not change what it gives."""
    for session in _sessions(subject):
        with session.palettizer.training_mode():
            session.train(_STEPS)
        session.model.eval()
        with torch.no_grad():
            wanted = session.model(session.inputs).clone()
            final = session.palettizer.finalize(backend="packed")(session.inputs)
        demand(subject, torch.equal(final, wanted), "finalizing changed the outputs")
