"""What tests of decoders share: small models, their tokens by torch and by runtimes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

PROMPT = [3, 1, 41, 59, 26, 53, 58, 9, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84]
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {"tie_word_embeddings": False}),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            "sliding_window": 12,
            "tie_word_embeddings": False,
            "initializer_range": 0.05,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
}


def model_of(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    name, config, own = KINDS[kind]
    made = getattr(transformers, config)(**{**SIZES, **own, **changes})
    return getattr(transformers, name)(made).eval()


def torch_tokens(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """Return what torch generates, the whole text read again for each token."""
    text = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([text]), use_cache=False).logits
        text.append(int(logits[0, -1].argmax()))
    return text[len(prompt) :]


def inputs_of(text: Sequence[int], given: Sequence[int]) -> dict[str, np.ndarray]:
    """Return the inputs of a file that has seen all of a text but the tokens given."""
    return {
        "input_ids": np.array([given], np.int32),
        "position_ids": np.arange(len(text), dtype=np.int32)[None],
    }


def core_ai_tokens(path: Path, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Return what Core AI's runtime generates on the CPU, texts one after the other.

    The states are not cleared in between.
    """
    from coreai.authoring import AIModelAsset
    from coreai.runtime import NDArray

    async def run() -> list[list[int]]:
        async with AIModelAsset.load(path).executable() as loaded:
            function = loaded.load_function("main")
            described = {n: function.desc.state_descriptor(n) for n in function.desc.state_names}
            state = {
                name: NDArray(np.zeros(found.shape, str(found.dtype).rpartition(".")[2]))
                for name, found in described.items()
            }
            found = []
            for prompt in prompts:
                text, given = list(prompt), list(prompt)
                for _ in range(count):
                    inputs = {k: NDArray(v) for k, v in inputs_of(text, given).items()}
                    logits = (await function(inputs=inputs, state=state))["logits"].numpy()
                    given = [int(logits[0, -1].argmax())]
                    text += given
                found.append(text[len(prompt) :])
            return found

    return asyncio.run(run())
