"""Keys and values in buffers, which become states of a runtime, as a cache of transformers.

They are written to a slice that begins where the given tokens begin, which is known from the shapes
of the inputs alone: so no converter meets an index that depends on data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

KEYS, VALUES = "keyCache", "valueCache"
SHORTEST = 8


class CacheLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, in slices of the buffers.

    Args:
        keys: ``[1, heads, places, width]``, changed in place.
        values: likewise.
        start: how many tokens came before; of the shapes of the inputs.
        end: how many there are with those of this call.
    """

    # A window is a matter of the mask: what lies behind it is kept, and not looked at.
    is_sliding = False
    is_compileable = True

    def __init__(self, keys: Tensor, values: Tensor, start: Any, end: Any) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self._start, self._end = start, end
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the buffers are there."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write those of the new tokens, and return those of all tokens so far."""
        del args, kwargs
        found = []
        for cache, new in ((self.keys, key_states), (self.values, value_states)):
            # Before the write, and joined: a slice of all places would be the cache itself, which
            # torch.export makes a case of its own.
            found.append(torch.cat((cache[:, :, : self._start], new), 2))
            cache[:, :, self._start : self._end] = new
        return found[0], found[1]

    def get_mask_sizes(self, query_length: int) -> tuple[Any, int]:
        """Return how many keys there are, and the place of the first."""
        del query_length
        return self._end, 0

    def get_seq_length(self) -> Any:
        """Return how many tokens came before."""
        return self._start

    def get_max_length(self) -> int:
        """Return how many tokens there is room for."""
        return self.keys.shape[2]


def add_buffers(module: nn.Module, model: Any, shape: tuple[int, int, int, int, int]) -> None:
    """Give a module ``keyCache`` and ``valueCache``.

    Args:
        module: that gets them.
        model: whose dtype and device they have.
        shape: ``[layers, 1, heads, context, width]``.
    """
    for name in (KEYS, VALUES):
        zeros = torch.zeros(shape, dtype=model.dtype, device=model.device)
        module.register_buffer(name, zeros, persistent=False)


def cache_of(module: nn.Module, input_ids: Tensor, position_ids: Tensor) -> tuple[Cache, Tensor]:
    """Return the cache in a module's buffers for these tokens, and the places of the new ones.

    Args:
        module: of `add_buffers`.
        input_ids: ``[1, n]`` int64, the new tokens.
        position_ids: ``[1, m]`` int64, the places of all tokens so far.
    """
    end: Any = position_ids.shape[1]
    start: Any = end - input_ids.shape[1]
    torch._check(start >= 0)  # type: ignore[no-untyped-call]
    keys, values = module.get_buffer(KEYS), module.get_buffer(VALUES)
    torch._check(end <= keys.shape[3])  # type: ignore[no-untyped-call]
    pairs = zip(keys, values, strict=True)
    layers = [CacheLayer(*pair, start, end) for pair in pairs]
    return Cache(layers=layers), position_ids[:, start:]


def token_shapes(context: int) -> dict[str, dict[int, Any]]:
    """Return ``dynamic_shapes`` of any number of tokens that there is room for."""
    new = torch.export.Dim("new", min=1, max=context - 1)
    seen = torch.export.Dim("seen", min=1, max=context)
    return {"input_ids": {1: new}, "position_ids": {1: seen}}


def apart(found: Tensor, wanted: Tensor) -> float | None:
    """Return how far apart logits are, of the largest; None where rounding explains it."""
    rough = 0.05 if found.dtype in (torch.float16, torch.bfloat16) else 1e-3
    far = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))
    return None if far <= rough else far
