"""Speech models of transformers as two functions, of a clip and of tokens, so that they convert.

The encoder returns keys and values that the decoder's layers look at, once for a clip; the decoder
takes them with each call and keeps those of the tokens in states. So no state goes from one
function to the other, which not every runtime can do.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

from palette_core.errors import BackendError
from transformers_bridge.caches import (
    SHORTEST,
    CacheLayer,
    add_buffers,
    apart,
    cache_of,
    token_shapes,
)

CROSS_KEYS, CROSS_VALUES = "cross_keys", "cross_values"


class _Given(CacheLayer):
    """Keys and values of a clip, which are there before the first token."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__(keys, values, keys.shape[2], keys.shape[2])


class _Taken(CacheLayer):
    """Keys and values of a clip as a layer of the decoder computes them."""

    def __init__(self) -> None:
        super().__init__(torch.empty(0), torch.empty(0), 0, 0)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep them."""
        del args, kwargs
        self.keys, self.values = key_states, value_states
        return key_states, value_states


@final
class SpeechEncoder(nn.Module):
    """The encoder of a speech model, with those layers of the decoder that read what it returns.

    Args:
        model: like Whisper; not copied.

    Raises:
        BackendError: it is none such model.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        _check_kind(model)
        self.model = model

    def forward(self, input_features: Tensor) -> dict[str, Tensor]:
        """Return keys and values of a clip, ``[layers, 1, heads, frames, width]``.

        Args:
            input_features: ``[1, mel bins, 2 * frames]`` in the dtype of the model.
        """
        heard = self.model.get_encoder()(input_features)[0]
        config = self.model.config
        taken = [_Taken() for _ in range(config.decoder_layers)]
        # A token is needed to go through the layers; what they make of it is used by nobody, and
        # torch.export leaves it out.
        self.model(
            encoder_outputs=(heard,),
            decoder_input_ids=torch.zeros((1, 1), dtype=torch.int64, device=heard.device),
            cache=EncoderDecoderCache(DynamicCache(), Cache(layers=list(taken))),
            use_cache=True,
        )
        return {
            CROSS_KEYS: torch.stack([layer.keys for layer in taken]),
            CROSS_VALUES: torch.stack([layer.values for layer in taken]),
        }

    def example_inputs(self) -> dict[str, Tensor]:
        """Return a clip of noise, as long as all clips."""
        config = self.model.config
        made = torch.Generator().manual_seed(0)
        shape = (1, config.num_mel_bins, 2 * config.max_source_positions)
        noise = torch.randn(shape, generator=made)
        return {"input_features": noise.to(self.model.device, self.model.dtype)}


@final
class SpeechDecoder(nn.Module):
    """The decoder of a speech model with keys and values in ``keyCache`` and ``valueCache``.

    For one clip at a time. Both are ``[layers, 1, heads, context, width]`` in the dtype of the
    model; as with `CachedDecoder`, they need no clearing before another clip.

    Args:
        model: like Whisper, in evaluation mode; not copied, and weights that are palettized stay
            so.
        context: how many tokens there is room for, 8 or more; None is the most that it takes.

    Raises:
        BackendError: it is none such model, or has fewer positions than ``context``.
    """

    def __init__(self, model: Any, context: int | None = None) -> None:
        super().__init__()
        self.model, self.context = model, _room(model, context)
        config = model.config
        heads = config.decoder_attention_heads
        shape = config.decoder_layers, 1, heads, self.context, config.d_model // heads
        add_buffers(self, model, shape)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, cross_keys: Tensor, cross_values: Tensor
    ) -> dict[str, Tensor]:
        """Return logits ``[1, n, vocabulary]`` of the token after each of ``input_ids``.

        Args:
            input_ids: ``[1, n]`` int64, tokens that follow each other; fewer than ``context``.
            position_ids: ``[1, m]`` int64, 0 to m - 1: the places of all tokens so far, those of
                ``input_ids`` at the end.
            cross_keys: of `SpeechEncoder`.
            cross_values: likewise.
        """
        cache, places = cache_of(self, input_ids, position_ids)
        clip = Cache(layers=[_Given(k, v) for k, v in zip(cross_keys, cross_values, strict=True)])
        # Layers ask whether there is a clip, and take what the cache has of it.
        heard = cross_keys.new_zeros((1, cross_keys.shape[3], self.model.config.d_model))
        made = self.model(
            encoder_outputs=(heard,),
            decoder_input_ids=input_ids,
            decoder_position_ids=places,
            cache=EncoderDecoderCache(cache, clip),
            use_cache=True,
        )
        return {"logits": made.logits}

    def example_inputs(self) -> dict[str, Tensor]:
        """Return four tokens of a text that has two already, and a clip of zeros."""
        config = self.model.config
        heads = config.decoder_attention_heads
        shape = (config.decoder_layers, 1, heads, config.max_source_positions)
        clip = torch.zeros((*shape, config.d_model // heads), dtype=self.model.dtype)
        return {
            "input_ids": torch.arange(4)[None],
            "position_ids": torch.arange(6)[None],
            CROSS_KEYS: clip,
            CROSS_VALUES: clip.clone(),
        }

    def dynamic_shapes(self) -> dict[str, dict[int, Any]]:
        """Return ``dynamic_shapes`` of any number of tokens that there is room for."""
        return {**token_shapes(self.context), CROSS_KEYS: {}, CROSS_VALUES: {}}

    def check_equal(self, encoder: SpeechEncoder) -> None:
        """Run a clip and a few tokens in two pieces, and compare with the model without a cache.

        Raises:
            BackendError: the logits differ, or the model cannot be run so.
        """
        name = type(self.model).__name__
        tokens, places = torch.arange(6)[None].to(self.model.device), torch.arange(6)[None]
        clip = encoder.example_inputs()
        try:
            with torch.no_grad():
                wanted = self.model(**clip, decoder_input_ids=tokens, use_cache=False).logits
                heard = encoder(**clip)
                pieces = [(tokens[:, :4], places[:, :4]), (tokens[:, 4:], places)]
                parts = [self(*piece, **heard)["logits"] for piece in pieces]
        # Whatever a model makes of a cache that it was not written for.
        except Exception as error:
            raise BackendError(
                f"{name} does not run with a cache in buffers: {type(error).__name__}: {error}"
            ) from error
        far = apart(torch.cat(parts, 1), wanted)
        if far is not None:
            raise BackendError(
                f"{name} computes otherwise with a cache in buffers: logits of 6 tokens are apart "
                f"by {far:.2g} of the largest; models like Whisper do not"
            )


def _check_kind(model: Any) -> None:
    config = model.config
    wanted = ("decoder_layers", "decoder_attention_heads", "d_model", "num_mel_bins")
    sizes = (*wanted, "max_source_positions", "max_target_positions")
    if not config.is_encoder_decoder or not all(hasattr(config, size) for size in sizes):
        raise BackendError(
            f"{type(model).__name__} is no model that hears a clip and writes tokens; expected one "
            "like WhisperForConditionalGeneration"
        )


def _room(model: Any, context: int | None) -> int:
    """Return the context, checked with the model."""
    _check_kind(model)
    most: int = model.config.max_target_positions
    if context is not None and not SHORTEST <= context <= most:
        name = type(model).__name__
        raise BackendError(f"context is {context}; {name} takes {SHORTEST} to {most}")
    return most if context is None else context
