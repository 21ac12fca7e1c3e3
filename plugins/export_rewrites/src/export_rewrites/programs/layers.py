"""Layers: convolutions, pooling, resizing, norms, attention, embeddings, recurrence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from export_rewrites.programs._record import Program, calls, modules, normal

_IMAGE, _SIGNAL, _VOLUME = normal(2, 4, 9, 9), normal(2, 4, 12), normal(1, 4, 4, 5, 6)
_ROWS = normal(2, 5, 16)
_HEADS = normal(2, 4, 5, 8)
_TOKENS = torch.tensor([[1, 4, 2, 0], [9, 0, 0, 3]])
_SOME = torch.tensor([[True, True, False, True, False]] * 2)
_GRID = torch.tanh(normal(2, 5, 5, 2))

LAYERS: list[Program] = [
    *modules(
        {
            "Conv2d": lambda: nn.Conv2d(4, 6, 3),
            "Conv2d, strided and padded": lambda: nn.Conv2d(4, 6, 3, 2, 1),
            "Conv2d, dilated": lambda: nn.Conv2d(4, 6, 3, dilation=2),
            "Conv2d, grouped": lambda: nn.Conv2d(4, 8, 3, groups=2, bias=False),
            "Conv2d, depthwise": lambda: nn.Conv2d(4, 4, 3, padding="same", groups=4),
            "Conv2d, padding_mode circular": lambda: nn.Conv2d(
                4, 6, 3, 1, 1, padding_mode="circular"
            ),
            "Conv2d, same with an even kernel": lambda: nn.Conv2d(4, 6, 4, padding="same"),
            "ConvTranspose2d": lambda: nn.ConvTranspose2d(4, 6, 3),
            "ConvTranspose2d, strided": lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1),
            "ConvTranspose2d, output_padding": lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1),
            "ConvTranspose2d, grouped": lambda: nn.ConvTranspose2d(4, 6, 2, 2, groups=2),
            "BatchNorm2d": lambda: nn.BatchNorm2d(4),
            "GroupNorm": lambda: nn.GroupNorm(2, 4),
            "InstanceNorm2d": lambda: nn.InstanceNorm2d(4),
            "InstanceNorm2d, affine": lambda: nn.InstanceNorm2d(4, affine=True),
            "LocalResponseNorm": lambda: nn.LocalResponseNorm(3),
            "PReLU": lambda: nn.PReLU(4),
            "Softmax2d": nn.Softmax2d,
            "Dropout2d": nn.Dropout2d,
            "MaxPool2d": lambda: nn.MaxPool2d(2),
            "MaxPool2d, padded": lambda: nn.MaxPool2d(3, 2, 1),
            "MaxPool2d, ceil_mode": lambda: nn.MaxPool2d(2, ceil_mode=True),
            "MaxPool2d, dilated": lambda: nn.MaxPool2d(2, 1, dilation=2),
            "MaxPool2d, indices": lambda: nn.MaxPool2d(3, 2, 1, return_indices=True),
            "AvgPool2d": lambda: nn.AvgPool2d(2),
            "AvgPool2d, padded": lambda: nn.AvgPool2d(3, 1, 1),
            "AvgPool2d, padding not counted": lambda: nn.AvgPool2d(
                3, 1, 1, count_include_pad=False
            ),
            "AvgPool2d, ceil_mode": lambda: nn.AvgPool2d(2, ceil_mode=True),
            "AvgPool2d, ceil_mode and padding": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
            "AvgPool2d, all at once": lambda: nn.AvgPool2d(
                (3, 2), (2, 3), (1, 0), ceil_mode=True, count_include_pad=False
            ),
            "AvgPool2d, divisor_override": lambda: nn.AvgPool2d(2, divisor_override=3),
            "AdaptiveAvgPool2d(1)": lambda: nn.AdaptiveAvgPool2d(1),
            "AdaptiveAvgPool2d(3)": lambda: nn.AdaptiveAvgPool2d(3),
            "AdaptiveAvgPool2d(4), uneven": lambda: nn.AdaptiveAvgPool2d(4),
            "AdaptiveMaxPool2d(1)": lambda: nn.AdaptiveMaxPool2d(1),
            "AdaptiveMaxPool2d(3)": lambda: nn.AdaptiveMaxPool2d(3),
            "LPPool2d": lambda: nn.LPPool2d(2, 3, 2),
            "Upsample, nearest": lambda: nn.Upsample(scale_factor=2),
            "Upsample, nearest to a size": lambda: nn.Upsample((13, 7)),
            "Upsample, nearest-exact": lambda: nn.Upsample((13, 7), mode="nearest-exact"),
            "Upsample, bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
            "Upsample, bilinear to a size": lambda: nn.Upsample((13, 7), mode="bilinear"),
            "Upsample, bilinear, corners": lambda: nn.Upsample(
                (13, 17), mode="bilinear", align_corners=True
            ),
            "Upsample, bicubic": lambda: nn.Upsample((13, 17), mode="bicubic"),
            "Upsample, area": lambda: nn.Upsample((3, 3), mode="area"),
            "ZeroPad2d": lambda: nn.ZeroPad2d(2),
            "ReplicationPad2d": lambda: nn.ReplicationPad2d(2),
            "Flatten": nn.Flatten,
        },
        _IMAGE,
    ),
    *calls(
        {
            "avg_pool2d, no stride given": lambda x: F.avg_pool2d(x, 2),
            "max_pool2d, no stride given": lambda x: F.max_pool2d(x, 2),
            "interpolate, antialiased": lambda x: F.interpolate(
                x, (5, 5), mode="bilinear", antialias=True
            ),
            "interpolate, half the size": lambda x: F.interpolate(
                x, scale_factor=0.5, mode="bilinear"
            ),
        },
        _IMAGE,
    ),
    *modules(
        {
            "Conv1d": lambda: nn.Conv1d(4, 6, 3, padding=1),
            "Conv1d, causal": lambda: nn.Sequential(
                nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(4, 6, 3)
            ),
            "ConvTranspose1d": lambda: nn.ConvTranspose1d(4, 6, 4, 2, 1),
            "MaxPool1d": lambda: nn.MaxPool1d(3, 2, 1),
            "AvgPool1d": lambda: nn.AvgPool1d(3, 2, 1),
            "AdaptiveAvgPool1d": lambda: nn.AdaptiveAvgPool1d(5),
            "AdaptiveMaxPool1d": lambda: nn.AdaptiveMaxPool1d(4),
            "BatchNorm1d": lambda: nn.BatchNorm1d(4),
            "InstanceNorm1d": lambda: nn.InstanceNorm1d(4, affine=True),
            "Upsample 1d, linear": lambda: nn.Upsample(scale_factor=2, mode="linear"),
            "Upsample 1d, nearest": lambda: nn.Upsample(scale_factor=3),
            "ReflectionPad1d": lambda: nn.ReflectionPad1d(3),
        },
        _SIGNAL,
    ),
    *modules(
        {
            "Conv3d": lambda: nn.Conv3d(4, 6, 3, padding=1),
            "ConvTranspose3d": lambda: nn.ConvTranspose3d(4, 6, 2, 2),
            "MaxPool3d": lambda: nn.MaxPool3d(2),
            "AvgPool3d": lambda: nn.AvgPool3d(2),
            "BatchNorm3d": lambda: nn.BatchNorm3d(4),
            "AdaptiveAvgPool3d": lambda: nn.AdaptiveAvgPool3d(2),
            "Upsample 3d, nearest": lambda: nn.Upsample(scale_factor=2),
            "Upsample 3d, trilinear": lambda: nn.Upsample(scale_factor=2, mode="trilinear"),
        },
        _VOLUME,
    ),
    *modules(
        {
            "Linear": lambda: nn.Linear(16, 8),
            "Linear without bias": lambda: nn.Linear(16, 8, bias=False),
            "LayerNorm": lambda: nn.LayerNorm(16),
            "LayerNorm without weights": lambda: nn.LayerNorm(16, elementwise_affine=False),
            "LayerNorm over two axes": lambda: nn.LayerNorm((5, 16)),
            "RMSNorm": lambda: nn.RMSNorm(16),
            "RMSNorm, eps": lambda: nn.RMSNorm(16, eps=1e-3),
            "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(
                16, 2, 32, batch_first=True
            ),
            "TransformerDecoderLayer": lambda: _Decoder(),  # noqa: PLW0108
            "MultiheadAttention": lambda: _Attention(),  # noqa: PLW0108
            "MultiheadAttention, weights returned": lambda: _Attention(need_weights=True),
            "MultiheadAttention, boolean mask": lambda: _Attention(attn_mask=_future()),
            "MultiheadAttention, causal hint": lambda: _Attention(
                attn_mask=_future(), is_causal=True
            ),
            "MultiheadAttention, padding": lambda: _Attention(key_padding_mask=_SOME),
            "MultiheadAttention, both masks": lambda: _Attention(
                attn_mask=_future(), key_padding_mask=_SOME & False
            ),
            "TransformerEncoder, padding": lambda: _Encoder(),  # noqa: PLW0108
            "LSTM": lambda: _First(nn.LSTM(16, 8, batch_first=True)),
            "LSTM, two ways and layers": lambda: _First(
                nn.LSTM(16, 8, 2, batch_first=True, bidirectional=True)
            ),
            "GRU": lambda: _First(nn.GRU(16, 8, batch_first=True)),
            "RNN": lambda: _First(nn.RNN(16, 8, batch_first=True)),
        },
        _ROWS,
    ),
    *modules(
        {
            "LSTMCell": lambda: _First(nn.LSTMCell(5, 8), 0),
            "GRUCell": lambda: nn.GRUCell(5, 8),
        },
        normal(2, 5),
    ),
    *calls(
        {
            "attention": lambda q: F.scaled_dot_product_attention(q, q + 1, q),
            "attention, causal": lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True),
            "attention, causal, more keys": lambda q: F.scaled_dot_product_attention(
                q[:, :, :3], q, q, is_causal=True
            ),
            "attention, scale": lambda q: F.scaled_dot_product_attention(q, q, q, scale=0.1),
            "attention, boolean mask": lambda q: F.scaled_dot_product_attention(
                q, q, q, torch.ones(5, 5, dtype=torch.bool).tril()
            ),
            "attention, mask of numbers": lambda q: F.scaled_dot_product_attention(
                q, q, q, q[0, 0] @ q[0, 0].mT
            ),
            "attention, mask of minus infinity": lambda q: F.scaled_dot_product_attention(
                q, q, q, torch.full((5, 5), float("-inf")).triu(1)
            ),
            "attention, rows that look at nothing": lambda q: F.scaled_dot_product_attention(
                q, q, q, torch.ones(5, 5, dtype=torch.bool).tril(-1)
            ),
            "attention, rows of minus infinity": lambda q: F.scaled_dot_product_attention(
                q, q, q, torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu() > 0, float("-inf"))
            ),
            "attention, mask from inputs": lambda q: F.scaled_dot_product_attention(
                q, q, q, (q[:, :, :, 0] > -5)[:, :, None]
            ),
            "attention, grouped heads": lambda q: F.scaled_dot_product_attention(
                q, q[:, :2], q[:, :2], enable_gqa=True
            ),
            "attention by hand": lambda q: (
                (q @ q.mT / 8**0.5 + _future().logical_not().float()).softmax(-1) @ q
            ),
            "rotary embedding": lambda q: q * 0.5 + torch.cat([-q[..., 4:], q[..., :4]], -1) * 0.3,
            "cosine_similarity": lambda q: F.cosine_similarity(q, q * 2 + 1, dim=-1),
            "pairwise_distance": lambda q: F.pairwise_distance(q[0, 0], q[1, 0]),
            "layer_norm without weights": lambda q: F.layer_norm(q, (8,)),
            "rms_norm without eps": lambda q: F.rms_norm(q, (8,)),
            "group_norm without weights": lambda q: F.group_norm(q, 2),
            "instance_norm by its function": F.instance_norm,
            "dropout": lambda q: F.dropout(q, 0.5, False),
            "alpha_dropout": lambda q: F.alpha_dropout(q, 0.5, False),
        },
        _HEADS,
    ),
    *modules(
        {
            "Embedding": lambda: nn.Embedding(10, 6),
            "Embedding, padding_idx": lambda: nn.Embedding(10, 6, padding_idx=0),
            "Embedding, max_norm": lambda: nn.Embedding(10, 6, max_norm=1.0),
            "EmbeddingBag": lambda: nn.EmbeddingBag(10, 6),
            "EmbeddingBag, sum": lambda: nn.EmbeddingBag(10, 6, mode="sum"),
        },
        _TOKENS,
    ),
    *modules(
        {"Bilinear": lambda: nn.Bilinear(4, 5, 3)},
        normal(2, 4),
        normal(2, 5),
    ),
    *calls(
        {
            "grid_sample": lambda x, g: F.grid_sample(x, g, align_corners=False),
            "grid_sample, corners": lambda x, g: F.grid_sample(x, g * 1.2, align_corners=True),
            "grid_sample, border": lambda x, g: F.grid_sample(
                x, g * 1.3, padding_mode="border", align_corners=False
            ),
            "grid_sample, nearest": lambda x, g: F.grid_sample(
                x, g, mode="nearest", align_corners=False
            ),
            "affine_grid": lambda x, g: F.affine_grid(
                g[:, 0, :2].reshape(2, 2, 2).repeat(1, 1, 2)[..., :3],
                [2, 1, 4, 5],
                align_corners=False,
            ),
        },
        _IMAGE,
        _GRID,
    ),
]


def _future() -> torch.Tensor:
    return torch.ones(5, 5, dtype=torch.bool).triu(1)


class _Attention(nn.Module):
    def __init__(self, **given: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.given = {"need_weights": False, **given}

    def forward(self, x: torch.Tensor) -> object:
        out, weights = self.attention(x, x, x, **self.given)
        return out if weights is None else (out, weights)


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> object:
        return self.encoder(x, src_key_padding_mask=_SOME)


class _Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x: torch.Tensor) -> object:
        return self.decoder(x, x + 1, tgt_mask=_future())


class _First(nn.Module):
    def __init__(self, inner: nn.Module, at: int = 0) -> None:
        super().__init__()
        self.inner, self.at = inner, at

    def forward(self, x: torch.Tensor) -> object:
        return self.inner(x)[self.at]
