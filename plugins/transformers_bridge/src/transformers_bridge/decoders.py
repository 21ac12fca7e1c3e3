"""Causal language models of transformers with their cache inside, in a form that converts.

The cache is two buffers, which become states of a runtime. Keys and values are written to a slice
that begins where the given tokens begin, which is known from the shapes of the inputs alone: so no
converter meets an index that depends on data.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from palette_core.errors import BackendError

KEYS, VALUES = "keyCache", "valueCache"
_KINDS = ("full_attention", "sliding_attention")
_SHORTEST = 8


class _Layer(CacheLayerMixin):  # type: ignore[misc]
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


@final
class CachedDecoder(nn.Module):
    """A causal language model with keys and values in buffers, ``keyCache`` and ``valueCache``.

    For one text at a time. Both are ``[layers, 1, heads, context, width]`` in the dtype of the
    model. What they hold behind the tokens given is not read, so a text can be begun anew, or
    continued from any place, without clearing them.

    Args:
        model: of transformers, in evaluation mode; not copied, and weights that are palettized
            stay so. Layers look at all tokens before, or at a window of them.
        context: how many tokens there is room for, 8 or more.

    Raises:
        BackendError: it is none such model, its rotary embedding depends on the length of the
            text, or there are fewer positions than ``context``.
    """

    def __init__(self, model: Any, context: int) -> None:
        super().__init__()
        config = model.config.get_text_config()
        _check(model, config, context)
        self.model, self.context = model, context
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        shape = (config.num_hidden_layers, 1, heads, context, width)
        for name in (KEYS, VALUES):
            self.register_buffer(
                name, torch.zeros(shape, dtype=model.dtype, device=model.device), persistent=False
            )

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> dict[str, Tensor]:
        """Return logits ``[1, n, vocabulary]`` of the token after each of ``input_ids``.

        Args:
            input_ids: ``[1, n]`` int64, tokens that follow each other; fewer than ``context``.
            position_ids: ``[1, m]`` int64, 0 to m - 1: the places of all tokens so far, those of
                ``input_ids`` at the end.
        """
        end: Any = position_ids.shape[1]
        start: Any = end - input_ids.shape[1]
        torch._check(start >= 0)  # type: ignore[no-untyped-call]
        torch._check(end <= self.context)  # type: ignore[no-untyped-call]
        keys, values = self.get_buffer(KEYS), self.get_buffer(VALUES)
        layers = [_Layer(k, v, start, end) for k, v in zip(keys, values, strict=True)]
        made = self.model(
            input_ids=input_ids,
            position_ids=position_ids[:, start:],
            cache=Cache(layers=layers),
            use_cache=True,
        )
        return {"logits": made.logits}

    def example_inputs(self) -> dict[str, Tensor]:
        """Return four tokens of a text that has two already."""
        return {"input_ids": torch.arange(4)[None], "position_ids": torch.arange(6)[None]}

    def dynamic_shapes(self) -> dict[str, dict[int, Any]]:
        """Return ``dynamic_shapes`` of any number of tokens that there is room for."""
        new = torch.export.Dim("new", min=1, max=self.context - 1)
        seen = torch.export.Dim("seen", min=1, max=self.context)
        return {"input_ids": {1: new}, "position_ids": {1: seen}}

    def check_equal(self) -> None:
        """Run a few tokens in two pieces, and compare with the model without a cache.

        Raises:
            BackendError: the logits differ, or the model cannot be run so.
        """
        name = type(self.model).__name__
        tokens, places = torch.arange(6)[None].to(self.model.device), torch.arange(6)[None]
        try:
            with torch.no_grad():
                wanted = self.model(input_ids=tokens, use_cache=False).logits
                parts = [self(tokens[:, :4], places[:, :4]), self(tokens[:, 4:], places)]
        # Whatever a model makes of a cache that it was not written for.
        except Exception as error:
            raise BackendError(
                f"{name} does not run with a cache in buffers: {type(error).__name__}: {error}"
            ) from error
        found = torch.cat([part["logits"] for part in parts], 1)
        rough = 0.05 if found.dtype in (torch.float16, torch.bfloat16) else 1e-3
        apart = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))
        if not apart <= rough:
            raise BackendError(
                f"{name} computes otherwise with a cache in buffers: logits of 6 tokens are apart "
                f"by {apart:.2g} of the largest; models like Llama, Qwen3 and Gemma3 do not"
            )


def _check(model: Any, config: Any, context: int) -> None:
    name = type(model).__name__
    kinds = set(getattr(config, "layer_types", None) or ()) - set(_KINDS)
    if config.is_encoder_decoder or not hasattr(config, "num_hidden_layers"):
        raise BackendError(f"{name} is no decoder by itself; expected a causal language model")
    if kinds:
        raise BackendError(
            f"{name} has layers of {', '.join(sorted(kinds))}, whose state is no cache of keys and "
            f"values; expected {' and '.join(_KINDS)} only"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    told = {str(part.get("rope_type")) for part in (rope, *rope.values()) if isinstance(part, dict)}
    if told & {"dynamic", "longrope"}:
        raise BackendError(
            f"the rotary embedding of {name} depends on the length of the text (rope_type "
            f"{', '.join(sorted(told & {'dynamic', 'longrope'}))}), which a file cannot follow"
        )
    positions = getattr(config, "max_position_embeddings", None) or context
    if not _SHORTEST <= context <= positions:
        raise BackendError(f"context is {context}; {name} takes {_SHORTEST} to {positions}")
