"""Tensors that others have quantized: left alone, counted as what they store, kept in files."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from palette_core import KMeansPalettizer, bits_per_weight, load_checkpoint, read_checkpoint
from palette_core.errors import CheckpointError, PaletteWarning

X = torch.linspace(-1, 1, 3 * 32).reshape(3, 32)


class Int8(Tensor):
    """A matrix that stores integers and a scale for each row, as quantizers do."""

    q: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, q: Tensor, scale: Tensor) -> Int8:
        return Tensor._make_wrapper_subclass(cls, q.shape, dtype=scale.dtype)

    def __init__(self, q: Tensor, scale: Tensor) -> None:
        self.q, self.scale = q, scale

    def __tensor_flatten__(self):
        return ["q", "scale"], None

    @staticmethod
    def __tensor_unflatten__(parts, context, size, stride):
        return Int8(parts["q"], parts["scale"])

    def __repr__(self, **more) -> str:
        return f"Int8({tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return Int8(args[0].q, args[0].scale)
        args = [a.q * a.scale if isinstance(a, Int8) else a for a in args]
        return func(*args, **(kwargs or {}))


def quantized(weight: Tensor) -> Int8:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return Int8((weight / scale).round().to(torch.int8), scale)


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 8, bias=False)).eval()
    made[1].weight = nn.Parameter(quantized(made[1].weight.detach()), requires_grad=False)
    return made


def prepared(made: nn.Module) -> KMeansPalettizer:
    palettizer = KMeansPalettizer(made)
    with pytest.warns(PaletteWarning, match=r"1\.weight \(8, 32\) stays dense.*it is a Int8"):
        palettizer.prepare(X)
    return palettizer


def test_they_are_left_alone_and_counted_as_what_they_store() -> None:
    made = model()
    stored = 8 * 32 * 8 + 8 * 32  # bits: integers, and a scale for each row
    assert bits_per_weight(made) == (32 * 32 * 32 + stored) / (32 * 32 + 8 * 32)
    palettizer = prepared(made)
    assert [tensor.name for tensor in palettizer.plan] == ["0.weight"]
    palettes = 32 * 32 * 4 + 16 * 32
    assert bits_per_weight(made) == (palettes + stored) / (32 * 32 + 8 * 32)


def test_they_are_kept_through_a_checkpoint(tmp_path) -> None:
    made = model()
    palettizer = prepared(made)
    path = palettizer.export(tmp_path / "m.safetensors", backend="packed")
    wanted = made(X)
    assert {"1.weight.q", "1.weight.scale"} <= read_checkpoint(path).dense.keys()
    fresh = model(seed=1)
    assert not torch.equal(fresh(X), wanted)
    assert torch.equal(load_checkpoint(path, fresh)(X), wanted)
    assert isinstance(fresh[1].weight, Int8)


def test_a_model_that_is_not_quantized_the_same_is_refused_and_left_as_it_was(tmp_path) -> None:
    path = prepared(model()).export(tmp_path / "m.safetensors", backend="packed")
    plain = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 8, bias=False))
    before = plain(X)
    with pytest.raises(CheckpointError, match=r"the model has no 1\.weight\.q"):
        load_checkpoint(path, plain)
    assert torch.equal(plain(X), before)


def test_modules_that_pack_their_weights_away_are_counted() -> None:
    made = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.ao.quantization.quantize_dynamic(made, {"0"}, dtype=torch.qint8)
    (note,) = KMeansPalettizer(made).make_plan(X).notes
    assert "quantized modules keep their weights out of sight and are left alone: 0;" in note
    elements = 32 * 32 + 32 + 8 * 32 + 8
    assert bits_per_weight(made) == (32 * 32 * 8 + 32 * 32 + (8 * 32 + 8) * 32) / elements


def test_modules_that_pack_their_weights_away_are_refused_by_name_and_reason(tmp_path) -> None:
    made = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.ao.quantization.quantize_dynamic(made, {"1"}, dtype=torch.qint8)
    palettizer = KMeansPalettizer(made)
    with pytest.warns(PaletteWarning, match="left alone: 1; no packed checkpoint holds them"):
        palettizer.prepare(X)
    wanted = made(X)
    with pytest.raises(CheckpointError, match=r"'1' is a torch\.ao\.nn\.quantized.*palettize the"):
        palettizer.export(tmp_path / "m.safetensors", backend="packed")
    assert not any(tmp_path.iterdir())
    assert torch.equal(made(X), wanted)


@pytest.mark.parametrize(
    ("buffer", "what"),
    [
        (lambda: torch.eye(8).to_sparse(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.eye(8), 0.1, 0, torch.qint8), "quantized by"),
    ],
    ids=["sparse", "quantized"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_no_file_holds_is_named(buffer, what, tmp_path) -> None:
    made = nn.Sequential(nn.Linear(32, 32))
    made.register_buffer("other", buffer())
    palettizer = KMeansPalettizer(made)
    palettizer.prepare(X)
    with pytest.raises(CheckpointError, match=f"other is {what}.*make it dense"):
        palettizer.export(tmp_path / "m.safetensors", backend="packed")
    assert not (tmp_path / "m.safetensors").exists()


def test_weights_made_in_inference_mode_are_left_alone_and_kept(tmp_path) -> None:
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        with torch.inference_mode():
            first = nn.Linear(32, 32)
        return nn.Sequential(first, nn.Linear(32, 8)).eval()

    made = make(0)
    palettizer = KMeansPalettizer(made)
    palettizer.calibrate([X])
    with pytest.warns(PaletteWarning, match=r"0\.weight.*made in torch.inference_mode"):
        palettizer.prepare(X)
    with palettizer.calibration_mode(loss_fn=lambda out, _: out.square().mean()) as session:
        session.step(made(X), None)
    path = palettizer.export(tmp_path / "m.safetensors", backend="packed")
    fresh = load_checkpoint(path, make(1))
    assert torch.equal(fresh(X), made(X))
    # What fails half way leaves them as they were too.
    other = make(2)
    before = other(X)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palette_core.storage.model_checkpoints.install_packed", fail)
        with pytest.raises(RuntimeError, match="half way"):
            load_checkpoint(path, other)
    assert torch.equal(other(X), before)


def fail(*args: object) -> None:
    raise RuntimeError("half way")


def test_torchao(tmp_path) -> None:
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def make() -> nn.Module:
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 8)).eval()
        quantize_(made[1], Int8WeightOnlyConfig())
        return made

    made = make()
    assert bits_per_weight(made) < (33 * 32 * 32 + 33 * 8 * 16) / (33 * 32 + 33 * 8)
    palettizer = KMeansPalettizer(made)
    with pytest.warns(PaletteWarning, match=r"1\.weight \(8, 32\) stays dense"):
        palettizer.prepare(X)
    path = palettizer.export(tmp_path / "m.safetensors", backend="packed")
    assert torch.equal(load_checkpoint(path, make())(X), made(X))
