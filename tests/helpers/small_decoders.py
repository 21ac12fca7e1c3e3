"""A small decoder, its checkpoint in shards, and the same without weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from palette_core import KMeansPalettizerConfig

WIDTH, WORDS, LAYERS = 16, 40, 3


class Block(nn.Module):
    """Attention without heads, and a feed-forward part; returns a tensor, or that in a tuple."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, scale: Tensor, note: dict[str, int] | None = None) -> object:
        attention = torch.softmax(self.q(x) @ self.k(x).mT / 4, -1) @ x
        x = x + scale * attention
        x = x + self.down(F.silu(self.up(x)))
        if self.form == "note":
            return x, note
        return (x, None) if self.form == "tuple" else x


class Decoder(nn.Module):
    """Embedding, blocks, norm and head."""

    def __init__(self, form: str = "tensor", *, tied: bool = False, projects: bool = False) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(WORDS, WIDTH)
        self.project_in = nn.Linear(WIDTH, WIDTH) if projects else nn.Identity()
        self.layers = nn.ModuleList(Block(form) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight
        scale = torch.tensor(0.5, device="cpu")  # has its value also where all else is meta
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.project_in(self.embed_tokens(input_ids))
        for layer in self.layers:
            x = layer(x, self.scale.to(x.dtype), note=object() if layer.form == "note" else None)
            x = x[0] if isinstance(x, tuple) else x
        return self.lm_head(self.norm(x))


def decoder(
    form: str = "tensor",
    *,
    tied: bool = False,
    projects: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Decoder:
    """Return a decoder with random weights."""
    torch.manual_seed(0)
    return Decoder(form, tied=tied, projects=projects).to(dtype).eval()


def skeleton_of(model: Decoder) -> Decoder:
    """Return the same without weights."""
    with torch.device("meta"):
        tied = model.lm_head.weight is model.embed_tokens.weight
        projects = isinstance(model.project_in, nn.Linear)
        made = Decoder(model.layers[0].form, tied=tied, projects=projects)
        return made.to(model.norm.weight.dtype)


def write_decoder(model: Decoder, folder: Path, shards: int = 2, *, twice: bool = False) -> Path:
    """Write a decoder's checkpoint, its blocks across shards; returns the folder.

    Of weights that are tied, one is written, or both.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tied = model.lm_head.weight is model.embed_tokens.weight and not twice
    states = {n: t for n, t in model.state_dict().items() if not (tied and n == "lm_head.weight")}
    names = {name: number % shards for number, name in enumerate(states)}
    files = [f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)]
    for number, file in enumerate(files):
        save_file({n: t.clone() for n, t in states.items() if names[n] == number}, folder / file)
    index = {"metadata": {}, "weight_map": {name: files[n] for name, n in names.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "made_up"}))
    return folder


def batches(count: int = 3) -> list[dict[str, Tensor]]:
    """Return calibration batches."""
    made = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(WORDS, (2, 12), generator=made)} for _ in range(count)]


def config(algorithm: str = "gptq", **modules: object) -> KMeansPalettizerConfig:
    """Return 3 bits in groups of 8, and None for modules that are left out."""
    spec = {
        "n_bits": 3,
        "granularity": {"type": "per_grouped_channel", "axis": 0, "group_size": 8},
        "algorithm": algorithm,
    }
    return KMeansPalettizerConfig.from_dict(
        {
            "kmeans_palettization_config": {
                "global_config": {"op_state_spec": {"weight": spec}},
                "module_name_configs": modules,
            }
        }
    )
