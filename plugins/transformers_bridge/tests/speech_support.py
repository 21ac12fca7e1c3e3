"""What tests of speech models share: a small Whisper, its tokens by torch and by runtimes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_source_positions": 20,
    "max_target_positions": 64,
    "num_mel_bins": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "init_std": 0.3,
}
START = [1, 5, 9]
Arrays = Mapping[str, np.ndarray]
Function = Callable[[Arrays], Arrays]
Pick = Callable[[np.ndarray, int], int | None]


def whisper(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.WhisperConfig(**{**SIZES, **changes})
    return transformers.WhisperForConditionalGeneration(config).eval()


def clips(count: int, seed: int = 1) -> list[Tensor]:
    made = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(1, 8, 40, generator=made) for _ in range(count)]


def likeliest(logits: np.ndarray, at: int) -> int:
    del at
    return int(logits.argmax())


def torch_tokens(
    model: Any, clip: Tensor, count: int, start: Sequence[int] = START, pick: Pick = likeliest
) -> list[int]:
    """Return what torch transcribes, the whole text read again for each token.

    Args:
        pick: takes logits ``[vocabulary]`` and how many tokens there are; None ends the text.
    """
    text = list(start)
    with torch.no_grad():
        heard = model.get_encoder()(clip)[0]
        for at in range(count):
            tokens = torch.tensor([text])
            made = model(encoder_outputs=(heard,), decoder_input_ids=tokens, use_cache=False)
            token = pick(made.logits[0, -1].numpy(), at)
            if token is None:
                break
            text.append(token)
    return text[len(start) :]


def tokens_of(
    functions: tuple[Function, Function],
    clip: Tensor,
    count: int,
    start: Sequence[int] = START,
    pick: Pick = likeliest,
) -> list[int]:
    """Return what the encoder and the decoder of a file transcribe, a token with each call."""
    encoder, decoder = functions
    heard = encoder({"input_features": clip.numpy()})
    text, given = list(start), list(start)
    for at in range(count):
        tokens = {
            "input_ids": np.array([given], np.int32),
            "position_ids": np.arange(len(text), dtype=np.int32)[None],
        }
        token = pick(decoder({**tokens, **heard})["logits"][0, -1], at)
        if token is None:
            break
        given = [token]
        text += given
    return text[len(start) :]


@contextmanager
def core_ai(path: Path) -> Iterator[tuple[Function, Function]]:
    """Give the encoder and the decoder of a file in Core AI's runtime, on the CPU.

    The states are zeros at first, and not cleared between clips.
    """
    from coreai.authoring import AIModelAsset
    from coreai.runtime import NDArray

    with asyncio.Runner() as loop:
        executable = AIModelAsset.load(path).executable()
        loaded = loop.run(executable.__aenter__())

        def called(name: str) -> Function:
            function = loaded.load_function(name)
            described = {n: function.desc.state_descriptor(n) for n in function.desc.state_names}
            state = {
                key: NDArray(np.zeros(found.shape, str(found.dtype).rpartition(".")[2]))
                for key, found in described.items()
            }

            async def run(inputs: Arrays) -> Arrays:
                arrays = {key: NDArray(value) for key, value in inputs.items()}
                made = await function(inputs=arrays, state=state)
                return {key: np.array(made[key].numpy()) for key in function.desc.output_names}

            return lambda inputs: loop.run(run(inputs))

        try:
            yield called("encoder"), called("decoder")
        finally:
            loop.run(executable.__aexit__(None, None, None))
