"""Packed checkpoints written and read without any model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from palettizer_models import mlp, prepared_mlp

from palette_core import load_checkpoint, read_checkpoint, save_checkpoint
from palette_core.errors import CheckpointError, UnknownPluginError
from palette_core.storage import CheckpointReader, palette_sites, write_checkpoint
from palette_core.tensors import PalettizedTensor

LUT = torch.tensor([-1.0, 0.5, 2.0, 4.0]).reshape(1, 1, 4, 1)


def weight(rows: int = 3) -> PalettizedTensor:
    codes = torch.arange(rows * 5, dtype=torch.uint8).reshape(rows, 5) % 4
    return PalettizedTensor(codes, LUT, 2, 0, torch.float32)


def test_what_is_written_without_a_model_is_what_a_model_saves(tmp_path: Path) -> None:
    _, model = prepared_mlp(enable_per_channel_scale=True)
    saved = save_checkpoint(model, tmp_path / "saved.safetensors")
    palettized = {s.name: s.palette.palettized() for s in palette_sites(model)}
    dense = {name: t for name, t in mlp().state_dict().items() if name.endswith("bias")}
    origins = {s.name: s.palette.origin for s in palette_sites(model)}
    written = write_checkpoint(tmp_path / "written.safetensors", palettized, dense, origins=origins)
    assert written.read_bytes() == saved.read_bytes()
    assert torch.equal(load_checkpoint(written, mlp(seed=3))[0].weight, model[0].weight)


def test_a_reader_tells_names_and_shapes_and_reads_one_tensor_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "two.safetensors"
    dense = {"bias": torch.ones(3), "empty": torch.zeros(0, 2)}
    write_checkpoint(path, {"a.w": weight(), "b.w": weight(2)}, dense, aliases={"c.w": "a.w"})
    with CheckpointReader(path) as file:
        assert set(file.palettized_names) == {"a.w", "b.w"}
        assert file.dense_names == ("bias", "empty")
        assert file.aliases == {"c.w": "a.w"}
        names = ("a.w", "b.w", "c.w", "bias", "empty")
        assert [file.shape(n) for n in names] == [(3, 5), (2, 5), (3, 5), (3,), (0, 2)]
        read, bias = file.palettized("a.w"), file.dense("bias")
        for ask in (file.shape, file.dense, file.palettized, file.form):
            with pytest.raises(KeyError, match="none"):
                ask("none")
        with pytest.raises(KeyError):
            file.dense("a.w.lut")  # a part, and no tensor of the model
    assert torch.equal(read.decode(), LUT.flatten()[weight().indices.long()])
    assert torch.equal(bias, torch.ones(3))


def test_a_damaged_weight_does_not_keep_others_from_being_read(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = write_checkpoint(tmp_path / "two.safetensors", {"a": weight(), "b": weight()})
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors["a.lut"]
    save_file(tensors, path, metadata=metadata)
    with CheckpointReader(path) as reader:
        assert torch.equal(reader.palettized("b").indices, weight().indices)
        with pytest.raises(CheckpointError, match=r"lacks a\.lut$"):
            reader.palettized("a")
    with pytest.raises(CheckpointError, match=r"lacks a\.lut$"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"dense": {"w.lut": torch.ones(1)}}, CheckpointError, r"w\.lut: .* have one name"),
        ({"aliases": {"v": "u"}}, CheckpointError, "alias v: there is no tensor u"),
        ({"stored_forms": {"u": "indices"}}, CheckpointError, "stored form of u: no such weight"),
        ({"origins": {"u": None}}, CheckpointError, "origin of u: no such weight"),
        ({"aliases": {"w": "w"}}, CheckpointError, "alias w has the name of a tensor of its own"),
        ({"stored_forms": {"w": "none"}}, UnknownPluginError, "no stored form is named 'none'"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(
    arguments: dict[str, object], error: type[Exception], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=reason):
        write_checkpoint(tmp_path / "x.safetensors", {"w": weight()}, **arguments)
    broken = PalettizedTensor(weight().indices, LUT, 2, 7, torch.float32)
    with pytest.raises(CheckpointError, match="w: axis 7 does not exist"):
        write_checkpoint(tmp_path / "x.safetensors", {"w": broken})
    unknown = PalettizedTensor(weight().indices, LUT * float("nan"), 2, 0, torch.float32)
    with pytest.raises(CheckpointError, match="w: lut has NaN or infinite values"):
        write_checkpoint(tmp_path / "x.safetensors", {"w": unknown})
    assert not list(tmp_path.iterdir())
