"""Tokens per second of SmolLM2-135M as transformers runs it, packed beside dense.

    python benchmarks/generating.py [--tokens 24] [--prompt 256] [--repeats 5] [--threads 1]
        [--bits 4] [--dtype float32]

The dense model has the weights that the packed one decodes to. Both generate greedily with
transformers' own cache of keys and values, and take turns; the shortest of each are compared, and
the tokens have to be the same. Needs transformers, and PALETTE_LOADERS as ``models.py`` does.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core.storage import PackedWeight, palette_sites

sys.path.insert(0, str(Path(__file__).parent))

import models
from packed_products import shortest, show

_LAYERS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def smollm2() -> nn.Module:
    """Return transformers' model with the weights of the loader's, head and embedding tied."""
    from transformers import LlamaConfig, LlamaForCausalLM

    plain: Any = models.smollm2()[0]
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    states = {
        "model.embed_tokens.weight": plain.token_embd.weight,
        "lm_head.weight": plain.token_embd.weight,
        "model.norm.weight": plain.output_norm.weight,
    }
    for i, block in enumerate(plain.blk):
        for theirs, ours in _LAYERS.items():
            weight = block.get_submodule(ours).weight.detach()
            if ours in ("attn_q", "attn_k"):
                weight = _halves(weight)
            states[f"model.layers.{i}.{theirs}.weight"] = weight
    model.load_state_dict(states)
    tokens = torch.randint(49152, (1, 16))
    torch.testing.assert_close(model(tokens).logits, plain(tokens), atol=1e-2, rtol=1e-3)
    return model


def _halves(weight: Tensor) -> Tensor:
    """Return rows of heads as transformers turns them: halves, where the loader's are pairs."""
    return weight.unflatten(0, (-1, 32, 2)).transpose(1, 2).flatten(0, 2)


def packed_of(model: nn.Module, n_bits: int) -> nn.Module:
    """Return a copy of the model, finalized."""
    spec = {"op_state_spec": {"weight": {"n_bits": n_bits}}}
    config = KMeansPalettizerConfig.from_dict(
        {
            "kmeans_palettization_config": {
                "global_config": spec,
                "module_type_configs": {"torch.nn.Embedding": spec},
            }
        }
    )
    palettizer = KMeansPalettizer(copy.deepcopy(model), config)
    palettizer.prepare((torch.zeros(1, 8, dtype=torch.long),), show_progress=False)
    return palettizer.finalize(backend="packed")


def generated(model: Any, prompt: Tensor, count: int) -> Tensor:
    """Return the tokens that follow a prompt, each the likeliest."""
    out: Tensor = model.generate(prompt, max_new_tokens=count, do_sample=False, pad_token_id=0)
    return out[:, prompt.shape[1] :]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    model = smollm2().to(getattr(torch, options.dtype))
    packed: Any = packed_of(model, options.bits)
    sites = palette_sites(packed, PackedWeight)
    bits = sum(site.palette.size_in_bits() for site in sites)
    whole = sum(site.palette.palettized_shape().numel() * 32 for site in sites)
    folded: Any = model
    with torch.no_grad():
        for site in sites:
            folded.get_parameter(site.name).copy_(site.palette.dense())
    print(f"load {os.getloadavg()[0]:.1f}, {options.threads} threads; {len(sites)} packed weights")
    print(f"packed weights take {bits / whole:.3f} of the memory of float32")
    print(f"{'case':<48}{'dense ms':>10}{'ratio':>9}{'target':>8}")
    prompt = torch.randint(49152, (1, options.prompt))
    both = {"dense": folded, "packed": packed}
    found = shortest({k: partial(m, prompt) for k, m in both.items()}, options.repeats)
    show(f"prompt of {options.prompt}", found["dense"], found["packed"], 1.1)
    start, count = prompt[:, :16], options.tokens
    texts = [generated(m, start, count) for m in both.values()]
    print(f"{int((texts[0] == texts[1]).sum())} of {count} tokens are the same")
    one = shortest({k: partial(generated, m, start, 1) for k, m in both.items()}, options.repeats)
    many = shortest(
        {k: partial(generated, m, start, count + 1) for k, m in both.items()}, options.repeats
    )
    each = {name: (many[name] - one[name]) / count for name in both}
    show("each further token", each["dense"], each["packed"], 1 / 1.3)
    rates = ", ".join(f"{name} {1 / seconds:.1f}" for name, seconds in each.items())
    print(f"tokens per second: {rates}; packed {each['dense'] / each['packed']:.2f} times dense")


if __name__ == "__main__":
    main()
