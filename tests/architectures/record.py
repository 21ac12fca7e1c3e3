"""An architecture: how to make a small random model of it, and what to feed it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Architecture:
    """A small random model.

    Attributes:
        name: unique, as tables show it.
        build: returns the model, untrained.
        inputs: by name; some are no tensors.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Mapping[str, Any]

    def make(self, seed: int = 0) -> nn.Module:
        """Return the model in evaluation mode, the same one for a seed.

        Vectors are moved a little: biases of zero and norms of one would hide what is left out.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.build().eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() == 1 and parameter.is_floating_point():
                        parameter.add_(torch.randn(parameter.shape) * 0.02)
        return model


def normal(*shape: int) -> Tensor:
    """Return standard normal numbers, the same ones every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
