"""Buffers that a model writes when it runs: no weights, and in no checkpoint."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from palette_core import (
    KMeansPalettizer,
    bits_per_weight,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)


class Attention(nn.Module):
    """Keys of up to ``context`` tokens are kept in a buffer."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.keys = nn.Linear(16, 16, bias=False)
        self.register_buffer("cache", torch.zeros(1, context, 16))
        self.register_buffer("scratch", torch.zeros(1, context, 16), persistent=False)
        self.register_buffer("scale", torch.tensor(0.25))

    def forward(self, x: Tensor) -> Tensor:
        self.cache[:, : x.shape[1]] = self.keys(x)
        self.scratch = self.cache * self.scale
        return self.scratch


class Decoder(nn.Module):
    def __init__(self, context: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Attention(context) for _ in range(2))
        self.norm = nn.BatchNorm1d(16)  # written in training alone

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)[:, : x.shape[1]]
        return self.norm(x[0])


X = torch.randn(1, 4, 16)
CACHES = [f"layers.{i}.{name}" for i in range(2) for name in ("cache", "scratch")]


@pytest.fixture
def prepared() -> nn.Module:
    return KMeansPalettizer(Decoder().eval()).prepare(X)


def test_reports_count_none_of_them():
    palettizer = KMeansPalettizer(Decoder().eval())
    model = palettizer.prepare(X)
    run = palettizer.report.run
    assert run.bits_per_weight == bits_per_weight(model)
    assert run.dense_bytes == sum(
        t.numel() * t.element_size()
        for name, t in Decoder().state_dict().items()
        if name not in CACHES
    )


def test_caches_are_no_weights(prepared):
    plan = KMeansPalettizer(Decoder()).make_plan(X)
    assert list(plan.written) == CACHES
    found = bits_per_weight(prepared)
    assert found.state_bits == dict.fromkeys(CACHES, 64 * 16 * 32)
    kept = 2 * (16 * 16 + 1) + 4 * 16 + 1
    assert found.total_weights == kept
    assert bits_per_weight(Decoder(8)).total_weights == kept + 4 * 8 * 16  # nothing has run it
    assert bits_per_weight(Decoder(8)).state_bits == {}
    assert not prepared.layers[0].cache.any()


def test_copies_and_finalized_models_know(prepared):
    finalized = KMeansPalettizer(prepared).finalize(copy.deepcopy(prepared), backend="packed")
    assert bits_per_weight(finalized).state_bits == bits_per_weight(prepared).state_bits


@pytest.mark.parametrize("context", [8, 64, 200])
def test_a_checkpoint_fits_any_length_of_context(prepared, tmp_path, context):
    path = save_checkpoint(prepared, tmp_path / "decoder.safetensors")
    checkpoint = read_checkpoint(path)
    assert [*checkpoint.written] == ["layers.0.cache", "layers.1.cache"]
    assert not {*CACHES} & checkpoint.dense.keys()
    assert "layers.0.scale" in checkpoint.dense
    loaded = load_checkpoint(path, Decoder(context).eval())
    assert loaded.layers[1].cache.shape == (1, context, 16)
    assert torch.equal(loaded(X), prepared(X))
    again = save_checkpoint(loaded, tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()


def test_a_failed_prepare_notes_nothing():
    model = Decoder().eval()
    with torch.no_grad():
        model.layers[1].keys.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layers\.1\.keys\.weight"):
        KMeansPalettizer(model).prepare(X)
    assert bits_per_weight(model).state_bits == {}
