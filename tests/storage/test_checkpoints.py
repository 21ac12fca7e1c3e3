"""Packed checkpoints: round trips, sizes, and files that do not fit."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_edits import rewritten
from palettizer_models import (
    E4M3,
    EVERYTHING_INPUTS,
    INT8,
    MLP_INPUTS,
    UINT8,
    Everything,
    decoded_weights,
    everything_prepared,
    ideal_bits,
    mlp,
    prepared_mlp,
    weight_config,
)
from safetensors.torch import save_file
from torch import nn

from palette_core import (
    KMeansPalettizer,
    PerGroupedChannelGranularity,
    PerTensorGranularity,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from palette_core.errors import CheckpointError, StateError
from palette_core.storage import checkpoint_writing
from palette_core.storage.packed_weight import PackedWeight
from palette_core.storage.sites import palette_sites
from palette_core.tensors.palettized import PalettizedTensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
GRANULARITIES = (
    PerTensorGranularity(),
    PerGroupedChannelGranularity(axis=0, group_size=4),
    PerGroupedChannelGranularity(axis=1, group_size=4),
)
CASES = [
    (bits, GRANULARITIES[i % 3], (None, INT8, UINT8, E4M3)[i % 4], i % 2 == 0, dim, DTYPES[i % 3])
    for i, (bits, dim) in enumerate(itertools.product((1, 2, 3, 4, 6, 8), (1, 2)))
]


@pytest.mark.parametrize(("n_bits", "granularity", "lut", "channel", "dim", "dtype"), CASES)
def test_round_trip(
    tmp_path: Path,
    n_bits: int,
    granularity: Any,
    lut: Any,
    channel: bool,
    dim: int,
    dtype: torch.dtype,
) -> None:
    config = weight_config(
        n_bits=n_bits,
        granularity=granularity,
        lut_qspec=lut,
        enable_per_channel_scale=channel,
        cluster_dim=dim,
        fast=dim == 1,
    )
    inputs = (MLP_INPUTS[0].to(dtype),)
    palettizer = KMeansPalettizer(mlp().to(dtype), config)
    model = palettizer.prepare(inputs)
    expected, weights = model(*inputs), decoded_weights(model)
    kept = {name: site.palette.palettized() for site in palette_sites(model) for name in site.names}
    path = save_checkpoint(model, tmp_path / "prepared.safetensors")
    final = palettizer.finalize(backend="packed")
    other = save_checkpoint(final, tmp_path / "final.safetensors")
    assert path.read_bytes() == other.read_bytes()
    read = read_checkpoint(path)  # no model here
    assert set(read.palettized) == {"0.weight", "2.weight"}
    assert set(read.dense) == {"0.bias", "2.bias"}
    for name, tensor in read.palettized.items():
        assert torch.equal(tensor.decode(), weights[name])
        assert torch.equal(tensor.indices, kept[name].indices)
        assert (tensor.n_bits, tensor.axis, tensor.dtype) == (n_bits, 0, dtype)
        for part in ("lut", "lut_scale", "lut_zero_point", "scale"):
            now, before = getattr(tensor, part), getattr(kept[name], part)
            assert (now is None) == (before is None)
            assert now is None or (now.dtype is before.dtype and now.shape == before.shape)
    loaded = load_checkpoint(path, mlp(seed=9).to(dtype))
    assert torch.equal(loaded(*inputs), expected)
    assert {n for n, p in loaded.named_parameters() if p.numel()} == {"0.bias", "2.bias"}


def test_every_kind_of_layer(tmp_path: Path) -> None:
    palettizer, model = everything_prepared(n_bits=3)
    model.bn.running_mean.fill_(0.3)
    palettizer.finalize(backend="packed")
    with torch.no_grad():
        expected = model(*EVERYTHING_INPUTS)
        loaded = load_checkpoint(save_checkpoint(model, tmp_path / "e"), Everything().eval())
        assert torch.equal(loaded(*EVERYTHING_INPUTS), expected)


@pytest.mark.parametrize("n_bits", [1, 2, 3, 4, 6, 8])
def test_size_is_the_ideal_bits_and_the_dense_rest(tmp_path: Path, n_bits: int) -> None:
    model = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 64))
    KMeansPalettizer(model, weight_config(n_bits=n_bits)).prepare((torch.zeros(1, 512),))
    path = save_checkpoint(model, tmp_path / "model.safetensors")
    ideal = sum(ideal_bits(w, n_bits) for w in (512 * 512, 64 * 512)) / 8 + (512 + 64) * 4
    header = struct.unpack("<Q", path.read_bytes()[:8])[0] + 8
    assert header < 2700  # of which the configuration is the most
    assert path.stat().st_size - header == pytest.approx(ideal, abs=8)
    if n_bits >= 4:
        assert path.stat().st_size < 1.03 * ideal


def test_weight_normed_layers(tmp_path: Path) -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Tanh())

    model = KMeansPalettizer(made(), weight_config()).prepare(MLP_INPUTS)
    path = save_checkpoint(model, tmp_path / "wn")
    assert torch.equal(load_checkpoint(path, made())(*MLP_INPUTS), model(*MLP_INPUTS))


def test_dense_ties_and_overlapping_memory(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(8, 8)
            self.norm, self.again = nn.LayerNorm(8), nn.LayerNorm(8)
            self.again.weight = self.norm.weight
            table = torch.arange(20.0)
            self.register_buffer("head", table[:10])
            self.register_buffer("tail", table[5:])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.again(self.norm(self.layer(x))) + self.head[1] + self.tail[1]

    model = KMeansPalettizer(Model(), weight_config()).prepare(MLP_INPUTS)
    with torch.no_grad():
        model.norm.weight.fill_(3.0)
    path = save_checkpoint(model, tmp_path / "m")
    assert read_checkpoint(path).aliases == {"again.weight": "norm.weight"}
    loaded = load_checkpoint(path, Model())
    assert loaded.again.weight is loaded.norm.weight
    assert torch.equal(loaded(*MLP_INPUTS), model(*MLP_INPUTS))


# --- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    _, model = prepared_mlp()
    (tmp_path / "deep").mkdir()
    path = save_checkpoint(model, tmp_path / "deep" / "model.safetensors")
    before = path.read_bytes()

    def fail(tensors: object, file: Path, metadata: object) -> None:
        Path(file).write_bytes(b"half a fi")
        raise failure

    monkeypatch.setattr(checkpoint_writing, "save_file", fail)
    with pytest.raises(type(failure)):
        save_checkpoint(model, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_an_unprepared_model_has_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="call prepare"):
        save_checkpoint(mlp(), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


# --- files that do not fit ----------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    _, model = prepared_mlp(lut_qspec=UINT8, enable_per_channel_scale=True)
    return save_checkpoint(model, tmp_path / "saved.safetensors")


def with_record(**changes: Any) -> Any:
    def change(header: dict[str, Any]) -> dict[str, Any]:
        header["palettized"]["0.weight"] |= changes
        return header

    return change


def without_axis(header: dict[str, Any]) -> dict[str, Any]:
    del header["palettized"]["0.weight"]["axis"]
    return header


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (lambda h: {**h, "version": 3}, "has format version 3; this palette_core reads 2 and 1"),
        (lambda h: {**h, "version": "x"}, "has format version 'x'"),
        (lambda h: {"palettized": {}}, "metadata is damaged: no version"),
        (lambda h: [1], "metadata is damaged"),
        (lambda h: "{not json", "metadata is damaged: no JSON"),
        (lambda h: "[" * 100_000, "metadata is damaged: no JSON: nested more than 64 deep"),
        (with_record(index_shape=[10**400]), "no JSON: an integer of 401 digits"),
        (with_record(index_shape=[10**19]), "index_shape"),
        (lambda h: {"version": 2}, "must be objects"),
        (lambda h: {**h, "palettized": [1]}, "must be objects"),
        (lambda h: {**h, "aliases": {"a": 3}}, "must map names to names"),
        (lambda h: {**h, "palettized": {"0.weight": 3}}, "record of 0.weight: TypeError"),
        (without_axis, "record of 0.weight: KeyError: 'axis'"),
        (with_record(n_bits=9), "n_bits 9"),
        (with_record(n_bits="2"), "n_bits '2'"),
        (with_record(n_bits=3), r"0\.weight\.indices is uint8 of shape \(32,\), expected"),
        (with_record(index_shape=[]), "index_shape"),
        (with_record(index_shape=[16, -8]), "index_shape"),
        (with_record(index_shape=7), "record of 0.weight: TypeError"),
        (with_record(index_shape=[128]), "0.weight: lut has shape"),
        (with_record(axis=2), "axis 2 does not exist"),
        (with_record(axis=-1), "axis -1 does not exist"),
        (with_record(dtype="float33"), "'float33' is not a torch dtype"),
        (with_record(dtype=3), "record of 0.weight"),
        (with_record(dtype="int8"), "for a weight of torch.int8"),
        (with_record(dtype="float16"), "scale is torch.float32"),
    ],
)
def test_damaged_metadata(saved: Path, header: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(rewritten(saved, header))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"0.weight.indices": None}, r"lacks 0\.weight\.indices"),
        ({"0.weight.lut": None}, r"lacks 0\.weight\.lut"),
        ({"0.weight.indices": None, "0.weight.lut": None}, "indices and 0.weight.lut"),
        ({"0.weight.indices": torch.zeros(31, dtype=torch.uint8)}, "31"),
        ({"0.weight.indices": torch.zeros(32)}, "indices is float32"),
        ({"0.weight.lut": torch.zeros(1, 1, 3, 1, dtype=torch.uint8)}, "lut has shape"),
        ({"0.weight.lut": torch.zeros(3, 1, 4, 1, dtype=torch.uint8)}, "does not divide"),
        ({"0.weight.lut_scale": None}, "has no scale"),
        ({"0.weight.lut_scale": torch.zeros(2)}, "lut_scale has shape"),
        ({"0.weight.lut_zero_point": torch.zeros(1, 1, 1, 1)}, "lut_zero_point is"),
        ({"0.weight.scale": torch.zeros(3, 1)}, "scale is"),
    ],
)
def test_missing_or_unfit_tensors(saved: Path, tensors: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(rewritten(saved, tensors=tensors))


@pytest.mark.parametrize("keep", [0, 4, 60, 0.5, 0.99])
def test_truncated(saved: Path, keep: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    with pytest.raises(CheckpointError, match="damaged or no safetensors file"):
        read_checkpoint(saved)


def test_foreign_files(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "dense.safetensors")
    with pytest.raises(CheckpointError, match="not a packed checkpoint"):
        read_checkpoint(tmp_path / "dense.safetensors")
    torch.save({"a": 1}, tmp_path / "torch.pt")
    with pytest.raises(CheckpointError, match="no safetensors file"):
        read_checkpoint(tmp_path / "torch.pt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no packed checkpoint in .*: neither"):
        read_checkpoint(tmp_path)


def mismatch(path: Path, model: nn.Module) -> str:
    """The message that loading ends in; the model must not have been touched."""
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, model)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert list(before) == list(model.state_dict())
    return str(caught.value)


def test_another_architecture_lists_everything(saved: Path) -> None:
    other = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 5), nn.PReLU())
    message = mismatch(saved, other)
    for part in (
        "the model has no 0.bias",
        "2.weight has shape (5, 16) in the model, (4, 16) in the file",
        "2.bias has shape (5,) in the model, (4,) in the file",
        "the file lacks 3.weight",
    ):
        assert part in message


def test_a_model_of_another_dtype(saved: Path) -> None:
    message = mismatch(saved, mlp().half())
    assert "0.weight is float16 in the model, float32 in the file; cast the model" in message
    assert "0.bias is float16" in message


def test_a_lazy_model(saved: Path) -> None:
    lazy = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 4))
    with pytest.raises(CheckpointError, match=r"0\.weight has no shape yet"):
        load_checkpoint(saved, lazy)


def test_a_palettized_model(saved: Path) -> None:
    palettizer, model = prepared_mlp()
    for form in (model, palettizer.finalize(backend="packed")):
        with pytest.raises(StateError, match="palettized already"):
            load_checkpoint(saved, form)


def test_loading_gives_packed_weights(saved: Path) -> None:
    loaded = load_checkpoint(saved, mlp(seed=4))
    items = [site.palette for site in palette_sites(loaded)]
    assert all(isinstance(item, PackedWeight) for item in items)
    assert all(isinstance(item.palettized(), PalettizedTensor) for item in items)
