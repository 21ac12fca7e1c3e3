"""Language models of transformers, small and random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from record import Architecture
from torch import nn

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
PAIR = {
    "d_model": 32,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}
T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 96,
    "decoder_start_token_id": 0,
}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 64}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MORE_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DEEPSEEK = {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 2,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
IDS = {"input_ids": torch.arange(3, 11)[None]}
PADDED = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9, 0, 0, 0], [3, 4, 5, 6, 7, 8, 9, 10]]),
    "attention_mask": torch.tensor([[1] * 5 + [0] * 3, [1] * 8]),
}
BOTH = {"input_ids": IDS["input_ids"], "decoder_input_ids": torch.arange(3, 8)[None]}
NO_CACHE = {"use_cache": False}


def transformers_model(model: str, config: str, settings: Mapping[str, Any]) -> nn.Module:
    """Return a random model of transformers by the names of two of its classes."""
    import transformers

    made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
    return made


def _model(model: str, config: str, settings: Mapping[str, Any]) -> Callable[[], nn.Module]:
    return partial(transformers_model, model, config, settings)


def decoder(kind: str, **more: Any) -> Architecture:
    make = _model(f"{kind}ForCausalLM", f"{kind}Config", {**TEXT, **more})
    return Architecture(kind, make, {**IDS, **NO_CACHE})


def _old_decoder(kind: str, head: str, settings: Mapping[str, Any]) -> Architecture:
    return Architecture(kind, _model(head, f"{kind}Config", settings), {**IDS, **NO_CACHE})


def _encoder(kind: str, **more: Any) -> Architecture:
    make = _model(f"{kind}ForMaskedLM", f"{kind}Config", {**ENCODER, **more})
    return Architecture(kind, make, PADDED)


def _pair(kind: str, head: str = "", **more: Any) -> Architecture:
    make = _model(head or f"{kind}ForConditionalGeneration", f"{kind}Config", {**PAIR, **more})
    return Architecture(kind, make, {**BOTH, **NO_CACHE})


def _t5(kind: str) -> Architecture:
    make = _model(f"{kind}ForConditionalGeneration", f"{kind}Config", T5)
    return Architecture(kind, make, {**BOTH, **NO_CACHE})


def _fnet() -> nn.Module:
    """Return it without the pooler, which masked words do not use."""
    made = transformers_model("FNetForMaskedLM", "FNetConfig", ENCODER)
    made.fnet.pooler = None
    return made


_WINDOW = {"sliding_window": 4}
# Those that CI tries; the others with PALETTE_ALL_ARCHITECTURES=1.
LANGUAGE = [
    Architecture(
        "Llama, tied",
        _model("LlamaForCausalLM", "LlamaConfig", {**TEXT, "tie_word_embeddings": True}),
        {**IDS, **NO_CACHE},
    ),
    Architecture(
        "Qwen2, padded", _model("Qwen2ForCausalLM", "Qwen2Config", TEXT), {**PADDED, **NO_CACHE}
    ),
    decoder("Qwen3"),
    Architecture(
        "Gemma3",
        _model("Gemma3ForCausalLM", "Gemma3TextConfig", {**TEXT, **_WINDOW}),
        {**IDS, **NO_CACHE},
    ),
    decoder("Phi3"),
    decoder("Mixtral", **EXPERTS),
    decoder("Qwen3Moe", **MORE_EXPERTS),
    decoder("DeepseekV3", **DEEPSEEK),
    decoder("GptOss", **EXPERTS, **_WINDOW),
    _old_decoder("GPT2", "GPT2LMHeadModel", {**OLD, "bos_token_id": 1, "eos_token_id": 2}),
    _old_decoder(
        "OPT",
        "OPTForCausalLM",
        {**ENCODER, "ffn_dim": 64, "word_embed_proj_dim": 32},
    ),
    _old_decoder(
        "Falcon",
        "FalconForCausalLM",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 96,
            "alibi": True,
        },
    ),
    _old_decoder(
        "Mamba2",
        "Mamba2ForCausalLM",
        {
            "hidden_size": 32,
            "num_heads": 8,
            "head_dim": 8,
            "state_size": 8,
            "n_groups": 2,
            "num_hidden_layers": 2,
            "vocab_size": 96,
            "expand": 2,
            "chunk_size": 8,
        },
    ),
    _encoder("Bert"),
    _encoder("Albert", embedding_size=16),
    _encoder(
        "DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=16
    ),
    _encoder("ModernBert", local_attention=4),
    Architecture(
        "DistilBert",
        _model(
            "DistilBertForMaskedLM",
            "DistilBertConfig",
            {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 96},
        ),
        PADDED,
    ),
    _t5("T5"),
    _pair("Bart", forced_eos_token_id=None),
]

MORE_LANGUAGE = [
    *(
        decoder(kind)
        for kind in (
            "Llama",
            "Gemma",
            "Cohere",
            "Olmo",
            "Olmo2",
            "Starcoder2",
            "StableLm",
            "Granite",
            "Phi",
            "Helium",
            "Glm",
            "Glm4",
            "SmolLM3",
            "Nemotron",
            "Persimmon",
            "SeedOss",
            "Ernie4_5",
            "Arcee",
            "Apertus",
            "HunYuanDenseV1",
            "BitNet",
        )
    ),
    *(decoder(kind, **_WINDOW) for kind in ("Mistral", "Gemma2", "Cohere2")),
    *(decoder(kind, **EXPERTS) for kind in ("GraniteMoe", "Phimoe")),
    decoder("JetMoe", **EXPERTS, kv_channels=8),
    decoder("Olmoe", num_experts=4, num_experts_per_tok=2),
    decoder("Qwen2Moe", **MORE_EXPERTS, shared_expert_intermediate_size=16),
    decoder("DeepseekV2", **DEEPSEEK),
    decoder("Exaone4", **_WINDOW, sliding_window_pattern=2),
    decoder("Lfm2", layer_types=["conv", "full_attention"]),
    decoder("RecurrentGemma", num_hidden_layers=3, attention_window_size=8, lru_width=32),
    _old_decoder("GPTBigCode", "GPTBigCodeForCausalLM", OLD),
    _old_decoder("GPTJ", "GPTJForCausalLM", {**OLD, "rotary_dim": 4}),
    _old_decoder("CodeGen", "CodeGenForCausalLM", {**OLD, "rotary_dim": 4}),
    _old_decoder("GPTNeoX", "GPTNeoXForCausalLM", ENCODER),
    _old_decoder(
        "GPTNeo",
        "GPTNeoForCausalLM",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 96,
            "window_size": 4,
            "max_position_embeddings": 64,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    _old_decoder(
        "Bloom",
        "BloomForCausalLM",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96},
    ),
    _old_decoder(
        "Mpt",
        "MptForCausalLM",
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 96, "max_seq_len": 64},
    ),
    _old_decoder(
        "XGLM",
        "XGLMForCausalLM",
        {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "vocab_size": 96},
    ),
    *(
        _old_decoder(
            kind,
            f"{kind}ForCausalLM",
            {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "vocab_size": 96},
        )
        for kind in ("Mamba", "FalconMamba")
    ),
    _old_decoder(
        "Rwkv",
        "RwkvForCausalLM",
        {
            "hidden_size": 32,
            "attention_hidden_size": 32,
            "num_hidden_layers": 2,
            "vocab_size": 96,
            "context_length": 64,
        },
    ),
    *(
        _encoder(kind)
        for kind in (
            "Roberta",
            "XLMRoberta",
            "MPNet",
            "Camembert",
            "LayoutLM",
            "RoFormer",
            "IBert",
            "MegatronBert",
            "Data2VecText",
        )
    ),
    Architecture("FNet", _fnet, IDS),
    _encoder("Electra", embedding_size=16),
    _encoder("Deberta", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    _encoder("RemBert", input_embedding_size=16, output_embedding_size=32),
    _encoder("ConvBert", embedding_size=32),
    _encoder("SqueezeBert", embedding_size=32),
    _encoder("MobileBert", embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16),
    _encoder("Esm", position_embedding_type="rotary"),
    _encoder("Nystromformer", num_landmarks=8, segment_means_seq_len=8),
    _encoder("Xmod", languages=["en"], default_language="en"),
    _encoder("Longformer", attention_window=4),
    _encoder("BigBird", attention_type="original_full"),
    Architecture(
        "XLNet",
        _model(
            "XLNetLMHeadModel",
            "XLNetConfig",
            {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "vocab_size": 96},
        ),
        IDS,
    ),
    _t5("MT5"),
    _t5("UMT5"),
    *(_pair(kind) for kind in ("Pegasus", "MBart", "Blenderbot", "M2M100", "PLBart")),
    _pair("Marian", "MarianMTModel", pad_token_id=0),
]
