"""Damage to packed checkpoints is refused by name; what a file says of where it comes from."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path

import pytest
import torch
from checkpoint_edits import damaged, header_of, rewritten, without_checksums
from palettizer_models import MLP_INPUTS, UINT8, decoded_weights, mlp, prepared_mlp, weight_config
from safetensors.torch import load_file

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from palette_core.errors import CheckpointError, PaletteWarning
from palette_core.storage import CheckpointReader
from palette_core.storage.checksums import checksum


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    _, model = prepared_mlp(lut_qspec=UINT8, enable_per_channel_scale=True)
    return save_checkpoint(model, tmp_path / "saved.safetensors")


def bits_of(path: Path) -> dict[str, list[torch.Tensor]]:
    read = read_checkpoint(path)
    found = {name: [tensor.decode()] for name, tensor in read.palettized.items()}
    return found | {name: [tensor] for name, tensor in read.dense.items()}


def test_the_checksum_is_of_dtype_shape_and_bytes() -> None:
    tensor = torch.arange(6, dtype=torch.int16).reshape(2, 3)
    data = b"int16 (2, 3)" + tensor.numpy().tobytes()
    assert checksum(tensor) == f"{zlib.crc32(data):08x}"
    kinds = (torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.complex64, torch.float64)
    others = [tensor.to(kind) for kind in kinds]
    others += [tensor.T, tensor.reshape(6), torch.zeros(()), torch.zeros(0, 2)]
    assert len({checksum(each) for each in others}) == len(others)
    assert checksum(tensor.T) == checksum(tensor.T.contiguous())


@pytest.mark.slow
def test_any_bit_that_flips_is_refused_or_changes_nothing(saved: Path) -> None:
    whole, right = saved.read_bytes(), bits_of(saved)
    start = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for at in range(8, len(whole)):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        saved.write_bytes(data)
        try:
            found = bits_of(saved)
        except CheckpointError:
            refused += 1
            continue
        assert at < start, f"byte {at - start} of the tensors"
        assert found.keys() == right.keys()
        assert all(torch.equal(found[name][0], right[name][0]) for name in found)
    assert refused > 0.9 * (len(whole) - 8)


@pytest.mark.parametrize(
    "key", ["0.weight.indices", "0.weight.lut", "2.weight.lut_scale", "2.weight.scale", "2.bias"]
)
def test_damage_is_refused_by_name_and_the_rest_can_be_read(saved: Path, key: str) -> None:
    harmed = load_file(saved)[key].contiguous()
    harmed.view(-1).view(torch.uint8)[-1] ^= 4
    path = damaged(saved, {key: harmed})
    with pytest.raises(CheckpointError, match=f"{key} is damaged: its checksum is another"):
        load_checkpoint(path, mlp(seed=2))
    with CheckpointReader(path) as file:
        assert file.shape("2.weight") == (4, 16)  # of the header, which is whole
        assert torch.equal(file.dense("0.bias"), read_checkpoint(saved).dense["0.bias"])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"0.weight.lut_zero_point": None}, r"lacks 0\.weight\.lut_zero_point$"),
        ({"0.weight.scale": None}, r"lacks 0\.weight\.scale$"),
        ({"2.bias": None}, r"lacks 2\.bias$"),
        ({"2.extra": torch.ones(2)}, r"2\.extra was not there when it was written"),
        ({"2.bias": torch.ones(4, dtype=torch.float64)}, r"2\.bias is damaged"),
    ],
)
def test_parts_that_are_gone_or_foreign(saved: Path, tensors: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(damaged(saved, tensors))


def test_a_scale_from_elsewhere(tmp_path: Path) -> None:
    _, model = prepared_mlp()
    path = save_checkpoint(model, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match=r"0\.weight\.scale was not there"):
        read_checkpoint(damaged(path, {"0.weight.scale": torch.ones(16, 1)}))


LUT = (1, 1, 4, 1)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"0.weight.lut": torch.zeros(LUT, dtype=torch.int32)}, "lut is torch.int32, expected one"),
        ({"0.weight.lut": torch.zeros(LUT, dtype=torch.bool)}, "lut is torch.bool, expected one"),
        ({"0.weight.lut": torch.zeros(LUT, dtype=torch.complex64)}, "lut is torch.complex64"),
        ({"0.weight.lut_scale": torch.full((1, 1, 1, 1), torch.nan)}, "lut_scale has NaN"),
        ({"0.weight.lut_scale": torch.ones(1, 1, 1, 1).double()}, "lut_scale is torch.float64"),
        ({"0.weight.scale": torch.full((16, 1), torch.inf)}, "scale has NaN or infinite"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*without checksums")
def test_what_cannot_be_is_refused_whatever_the_checksums_say(
    saved: Path, tensors: dict[str, torch.Tensor], message: str, older: bool
) -> None:
    if not message.startswith(("lut_scale", "scale")):
        tensors = {**tensors, "0.weight.lut_zero_point": None}
    path = rewritten(saved, tensors=tensors)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(without_checksums(path) if older else path)


def test_tables_of_8_bit_floats_that_are_no_numbers(tmp_path: Path) -> None:
    from palettizer_models import E4M3

    _, model = prepared_mlp(lut_qspec=E4M3)
    path = save_checkpoint(model, tmp_path / "f8.safetensors")
    lut = torch.full(LUT, torch.nan).to(torch.float8_e4m3fn)
    with pytest.raises(CheckpointError, match="lut has NaN or infinite values"):
        read_checkpoint(rewritten(path, tensors={"0.weight.lut": lut}))


def test_tables_that_training_has_ruined_are_not_saved(tmp_path: Path) -> None:
    palettizer, model = prepared_mlp()
    palettizer.finalize(backend="packed")
    for name, buffer in model.named_buffers():
        if name.startswith("2.") and name.endswith(".lut"):
            buffer.fill_(torch.nan)
    with pytest.raises(CheckpointError, match=r"2\.weight\.lut has NaN or infinite values"):
        save_checkpoint(model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ({"2.weight": "0.weight"}, "alias 2.weight has the name of a tensor of its own"),
        ({"0.bias": "2.bias"}, "alias 0.bias has the name of a tensor of its own"),
        ({"more": "nothing"}, "alias more is of nothing, which is not there"),
        ({"more": "0.weight.lut"}, "alias more is of 0.weight.lut, which is not there"),
    ],
)
def test_aliases_over_tensors_and_of_none(
    saved: Path, aliases: dict[str, str], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(rewritten(saved, lambda header: {**header, "aliases": aliases}))


def test_headers_that_were_changed_or_have_no_checksums(saved: Path) -> None:
    text = saved.read_bytes()
    saved.write_bytes(text.replace(rb"\"axis\":0", rb"\"axis\":1", 1))
    with pytest.raises(CheckpointError, match="metadata is damaged: it does not match its"):
        read_checkpoint(saved)
    saved.write_bytes(text.replace(rb"\"header_crc32\":", rb"\"header_crc33\":"))
    with pytest.raises(CheckpointError, match="it has no checksums, which this version has"):
        read_checkpoint(saved)
    saved.write_bytes(text.replace(rb"{\"version\":2", rb"{\"version\":1"))
    with pytest.raises(CheckpointError, match="metadata is damaged: it does not match its"):
        read_checkpoint(saved)


def test_an_older_file_loads_with_a_note(saved: Path) -> None:
    older = without_checksums(saved)
    with pytest.warns(PaletteWarning, match="was written without checksums, so damage"):
        loaded = load_checkpoint(older, mlp(seed=3))
    assert torch.equal(loaded(*MLP_INPUTS), load_checkpoint(saved, mlp(seed=4))(*MLP_INPUTS))
    again = save_checkpoint(loaded, saved.with_name("again.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not read_checkpoint(again).origins  # nobody knows


# --- where a file comes from --------------------------------------------------------------------


def test_a_file_says_what_made_its_palettes(tmp_path: Path) -> None:
    config = weight_config(n_bits=3, lut_qspec=UINT8)
    palettizer = KMeansPalettizer(mlp(), config)
    model = palettizer.prepare(MLP_INPUTS)
    path = save_checkpoint(model, tmp_path / "m.safetensors")
    origins = read_checkpoint(path).origins
    assert palettizer.plan is not None
    assert {name: o.seed for name, o in origins.items()} == {
        p.name: p.seed for p in palettizer.plan
    }
    assert {o.algorithm for o in origins.values()} == {"kmeans1d"}
    source = origins["0.weight"].source
    assert KMeansPalettizerConfig.from_dict(source.config) == config
    assert source.plugins["clusterer:kmeans1d"].startswith("palette-core ")
    assert any(key.startswith("lut-quantizer:") for key in source.plugins)
    assert len(header_of(path)["origin"]["sources"]) == 1
    # The same config makes the same weights again.
    twin = KMeansPalettizer(mlp(), KMeansPalettizerConfig.from_dict(source.config))
    weights = decoded_weights(twin.prepare(MLP_INPUTS))
    assert all(torch.equal(weights[name], t) for name, t in decoded_weights(model).items())


def test_it_is_said_again_by_whoever_loads_and_saves(tmp_path: Path) -> None:
    palettizer, model = prepared_mlp()
    palettizer.finalize(backend="packed")
    path = save_checkpoint(model, tmp_path / "m.safetensors")
    loaded = load_checkpoint(path, mlp(seed=3))
    again = save_checkpoint(loaded, tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "origin",
    [
        3,
        {"sources": 3},
        {"sources": [3]},
        {"tensors": {"0.weight": {"algorithm": "a", "seed": 1, "source": 7}}},
        {"tensors": {"0.weight": {"algorithm": 1, "seed": 1, "source": 0}}},
        {"sources": [{"config": [], "plugins": {}}]},
    ],
)
def test_origins_that_are_none(saved: Path, origin: object) -> None:
    with pytest.raises(CheckpointError, match="metadata is damaged: origin: "):
        read_checkpoint(rewritten(saved, lambda header: {**header, "origin": origin}))
