"""Causal language models of transformers with their cache inside, in a form that converts."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from palette_core.errors import BackendError
from transformers_bridge.caches import SHORTEST, add_buffers, apart, cache_of, token_shapes

_KINDS = ("full_attention", "sliding_attention")


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
        add_buffers(self, model, (config.num_hidden_layers, 1, heads, context, width))

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> dict[str, Tensor]:
        """Return logits ``[1, n, vocabulary]`` of the token after each of ``input_ids``.

        Args:
            input_ids: ``[1, n]`` int64, tokens that follow each other; fewer than ``context``.
            position_ids: ``[1, m]`` int64, 0 to m - 1: the places of all tokens so far, those of
                ``input_ids`` at the end.
        """
        cache, places = cache_of(self, input_ids, position_ids)
        made = self.model(
            input_ids=input_ids,
            position_ids=places,
            cache=cache,
            use_cache=True,
        )
        return {"logits": made.logits}

    def example_inputs(self) -> dict[str, Tensor]:
        """Return four tokens of a text that has two already."""
        return {"input_ids": torch.arange(4)[None], "position_ids": torch.arange(6)[None]}

    def dynamic_shapes(self) -> dict[str, dict[int, Any]]:
        """Return ``dynamic_shapes`` of any number of tokens that there is room for."""
        return token_shapes(self.context)

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
        far = apart(found, wanted)
        if far is not None:
            raise BackendError(
                f"{name} computes otherwise with a cache in buffers: logits of 6 tokens are apart "
                f"by {far:.2g} of the largest; models like Llama, Qwen3 and Gemma3 do not"
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
    if not SHORTEST <= context <= positions:
        raise BackendError(f"context is {context}; {name} takes {SHORTEST} to {positions}")
