"""Real models with example inputs, for ``run.py`` and for the command line.

    palette demo --model benchmarks/models.py:effnet

The environment variable PALETTE_LOADERS names a folder with one file per model (minilm.py,
effnet.py, smollm2.py, whisper_tiny.py), each with a ``load()`` that returns a module.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

Loaded = tuple[nn.Module, tuple[Any, ...]]


def minilm() -> Loaded:
    """all-MiniLM-L6-v2: 22.7 M weights, half of them in the embedding."""
    return _loader("minilm").load(), (_tokens(30522), torch.ones(1, 16, dtype=torch.bool))


def effnet() -> Loaded:
    """EfficientNet-Lite0: 4.7 M weights in many small convolutions."""
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return _loader("effnet").load(), (image,)


def smollm2() -> Loaded:
    """SmolLM2-135M: 135 M weights, the embedding tied to the output."""
    return _loader("smollm2").load(), (_tokens(49152),)


def smollm2_decoder() -> tuple[nn.Module, dict[str, Tensor]]:
    """SmolLM2-135M as transformers has it, its keys and values in states of OpenVINO that grow."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from openvino_backend import Decoder

    dense = smollm2()[0].state_dict()
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5}, max_position_embeddings=2048,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    given = {
        "model.embed_tokens.weight": dense["token_embd.weight"],
        "lm_head.weight": dense["token_embd.weight"],
        "model.norm.weight": dense["output_norm.weight"],
    }
    for at in range(30):
        for theirs, ours in _SMOLLM2.items():
            weight = dense[f"blk.{at}.{ours}.weight"]
            if ours in ("attn_q", "attn_k"):  # they rotate halves of a head, the loader pairs
                weight = weight.unflatten(0, (-1, 32, 2)).transpose(1, 2).flatten(0, 2)
            given[f"model.layers.{at}.{theirs}.weight"] = weight
    model.load_state_dict(given, assign=True)
    model.tie_weights()
    decoder = Decoder(model.eval(), 256).eval()
    return decoder, decoder.example_inputs()


_SMOLLM2 = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class TeacherForcing(nn.Module):
    """Encoder and decoder of a speech model in one call: spectrogram and tokens in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, mel: Tensor, ids: Tensor) -> Tensor:
        return self.model.decode(ids, self.model.encode(mel))


def whisper() -> Loaded:
    """Whisper tiny.en: 37 M weights."""
    mel = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0))
    return TeacherForcing(_loader("whisper_tiny").load()).eval(), (mel, _tokens(50257))


class Encoder(nn.Module):
    """The encoder of a speech model alone: spectrogram in, states out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for unused in ("tok", "dec", "dec_ln", "dpos"):
            delattr(model, unused)
        self.model = model

    def forward(self, mel: Tensor) -> Tensor:
        return self.model.encode(mel)


def whisper_encoder() -> Loaded:
    """The encoder of Whisper tiny.en: 7.6 M weights."""
    mel = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0))
    return Encoder(_loader("whisper_tiny").load()).eval(), (mel,)


def _tokens(vocabulary: int) -> Tensor:
    return torch.randint(vocabulary, (1, 16), generator=torch.Generator().manual_seed(0))


def _loader(name: str) -> ModuleType:
    folder = os.environ.get("PALETTE_LOADERS")
    if not folder:
        raise RuntimeError(
            f"PALETTE_LOADERS is not set; it names the folder that holds {name}.py, the loader"
        )
    path = Path(folder).expanduser() / f"{name}.py"
    if not path.is_file():
        raise RuntimeError(f"PALETTE_LOADERS={folder} has no {name}.py")
    spec = importlib.util.spec_from_file_location(f"palette_loader_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    threads = torch.get_num_threads()
    try:
        spec.loader.exec_module(module)
    finally:
        torch.set_num_threads(threads)  # a loader may set its own
    return module
