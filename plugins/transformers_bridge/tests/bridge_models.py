"""Small random models of transformers, and what they are fed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}
SEQ2SEQ: dict[str, Any] = {
    "d_model": 32,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "vocab_size": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOW = {"num_hidden_layers": 6, "sliding_window": 4}


def _of(name: str, config: str, **values: Any) -> Callable[[], Any]:
    def make() -> Any:
        torch.manual_seed(0)
        made = getattr(transformers, config)(**values)
        return getattr(transformers, name)(made).eval()

    return make


MODELS: dict[str, Callable[[], Any]] = {
    "llama": _of("LlamaForCausalLM", "LlamaConfig", **TEXT, tie_word_embeddings=True),
    "qwen3": _of("Qwen3ForCausalLM", "Qwen3Config", **TEXT, tie_word_embeddings=False),
    "gemma3": _of("Gemma3ForCausalLM", "Gemma3TextConfig", **TEXT | WINDOW),
    "bert": _of("BertForMaskedLM", "BertConfig", **ENCODER),
    "t5": _of(
        "T5ForConditionalGeneration",
        "T5Config",
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        vocab_size=96,
        decoder_start_token_id=0,
    ),
    "whisper": _of(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        **SEQ2SEQ,
        max_source_positions=16,
        max_target_positions=32,
        num_mel_bins=8,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    ),
    "gpt2": _of(
        "GPT2LMHeadModel",
        "GPT2Config",
        n_embd=32,
        n_layer=2,
        n_head=4,
        vocab_size=96,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "qwen3_moe": _of("Qwen3MoeForCausalLM", "Qwen3MoeConfig", **TEXT, **EXPERTS),
}
FURTHER: dict[str, Callable[[], Any]] = {
    "mixtral": _of("MixtralForCausalLM", "MixtralConfig", **TEXT, num_local_experts=4),
    "gpt_oss": _of(
        "GptOssForCausalLM",
        "GptOssConfig",
        **TEXT,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=4,
    ),
    "gemma3_with_images": _of(
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        text_config=TEXT | {"sliding_window": 4},
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=90,
    ),
    "vit": _of("ViTForImageClassification", "ViTConfig", **VISION),
    "phi3": _of("Phi3ForCausalLM", "Phi3Config", **TEXT),
    "bart": _of(
        "BartForConditionalGeneration",
        "BartConfig",
        **SEQ2SEQ,
        max_position_embeddings=64,
        forced_eos_token_id=None,
    ),
}


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(3, 90, (2, 7))
    if name == "whisper":
        return {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": ids}
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16)}
    if name in ("t5", "bart"):
        return {"input_ids": ids, "decoder_input_ids": ids}
    return {"input_ids": ids}


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def tokens(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    given = {name: value for name, value in inputs.items() if name != "decoder_input_ids"}
    return model.generate(**given, max_new_tokens=6, do_sample=False)
