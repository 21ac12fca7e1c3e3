"""Small dense checkpoints on disk, as libraries write them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from palette_core import KMeansPalettizerConfig

CONFIG = KMeansPalettizerConfig.presets.w4()


def tensors(seed: int = 0, layers: int = 3) -> dict[str, Tensor]:
    """Return the tensors of a made-up language model."""
    made = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=made).to(torch.bfloat16)

    found = {"model.embed_tokens.weight": random(48, 32), "model.norm.weight": random(32)}
    for layer in range(layers):
        found |= {
            f"model.layers.{layer}.self_attn.q_proj.weight": random(32, 32),
            f"model.layers.{layer}.self_attn.q_proj.bias": random(32),
            f"model.layers.{layer}.mlp.up_proj.weight": random(64, 32).float(),
            f"model.layers.{layer}.mlp.gate.weight": random(4, 32),
        }
    return found


def write_folder(
    folder: Path, seed: int = 0, shards: int = 2, layers: int = 3
) -> dict[str, Tensor]:
    """Write a checkpoint in one file, or in several with their index; returns its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    found = tensors(seed, layers)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_moe"}))
    (folder / "tokenizer.json").write_text("{}")
    if shards == 1:
        save_file(found, folder / "model.safetensors")
        return found
    names = {name: number % shards for number, name in enumerate(found)}
    files = [f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)]
    for number, file in enumerate(files):
        save_file({n: t for n, t in found.items() if names[n] == number}, folder / file)
    index = {"metadata": {}, "weight_map": {name: files[n] for name, n in names.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return found


def content(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
