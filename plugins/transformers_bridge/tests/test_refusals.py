"""What cannot be opened or saved says so, and nothing loads as random weights."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from bridge_models import MODELS, inputs_of, logits
from test_opening import CONFIG, palettized

from palette_core.errors import CheckpointError, StateError
from palette_core.storage import palette_sites
from transformers_bridge import PaletteConfig

WITHOUT = """
import sys, transformers
for folder in sys.argv[1:]:
    try:
        transformers.AutoModelForCausalLM.from_pretrained(folder)
    except OSError as error:
        assert "model.safetensors" in str(error), error
    else:
        raise SystemExit(f"{folder} was opened")
"""


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    MODELS["llama"]().save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


@pytest.fixture
def out(dense: Path) -> Path:
    return palettized(dense, dense.parent / "out")


def opened(folder: Path, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


@pytest.mark.slow
def test_nothing_is_opened_without_the_bridge(out: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    opened(out).save_pretrained(again)
    command = [sys.executable, "-c", WITHOUT, str(out), str(again)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_option_can_be_given_in_a_configuration(out: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(out)
    config.quantization_config["dequantize"] = True
    assert not palette_sites(opened(out, config=config))
    told = json.loads((out / "config.json").read_text())
    assert "dequantize" not in told["quantization_config"]


def test_a_dense_folder_is_not_palettized_on_load(dense: Path) -> None:
    with pytest.raises(CheckpointError, match="palettize-checkpoint SRC"):
        opened(dense, quantization_config=PaletteConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "../elsewhere.safetensors"}, "weights is '../elsewhere.safetensors', not"),
        ({"bits": 4}, "has bits, which this version"),
    ],
)
def test_an_unknown_configuration_is_refused(out: Path, change, message) -> None:
    told = json.loads((out / "config.json").read_text())
    told["quantization_config"] |= change
    (out / "config.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=message):
        opened(out)


@pytest.mark.parametrize("dequantize", [False, True])
@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight.indices", "model.norm.weight"])
def test_a_flipped_bit_is_found(out: Path, name, dequantize) -> None:
    path = out / "palette.safetensors"
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[:8], "little")
    at = 8 + size + json.loads(content[8 : 8 + size])[name]["data_offsets"][0]
    content[at] ^= 1
    path.write_bytes(content)
    config = transformers.AutoConfig.from_pretrained(out)
    config.quantization_config["dequantize"] = dequantize
    with pytest.raises(CheckpointError, match=name):
        opened(out, config=config)


def test_a_missing_file_is_missed(out: Path) -> None:
    (out / "palette.safetensors").unlink()
    with pytest.raises(OSError, match=r"palette\.safetensors"):
        opened(out)


def test_a_folder_that_is_not_finished_is_refused(out: Path) -> None:
    (out / ".palette-unfinished").mkdir()
    with pytest.raises(CheckpointError, match="is not finished"):
        opened(out)


# --- afterwards ---------------------------------------------------------------------------------


def test_options_that_saving_cannot_heed_are_refused(out: Path, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="heeds no variant='fp16'"):
        opened(out).save_pretrained(tmp_path / "again", variant="fp16")
    assert not (tmp_path / "again").exists()


def test_other_weights_in_the_folder_are_not_left_beside_new_ones(dense: Path, out: Path) -> None:
    with pytest.raises(StateError, match=r"holds model\.safetensors, which"):
        opened(out).save_pretrained(dense)
    assert not (dense / "palette.safetensors").exists()


def test_parts_of_the_model_are_not_saved_as_if_they_were_dense(out: Path, tmp_path) -> None:
    with pytest.raises(StateError, match="cannot save palettized weights"):
        opened(out).model.save_pretrained(tmp_path / "part")


def test_a_model_is_saved_over_the_folder_that_it_came_from(out: Path) -> None:
    model, inputs = opened(out), inputs_of("llama")
    before = logits(model, inputs)
    model.save_pretrained(out)
    assert torch.equal(logits(model, inputs), before)
    assert torch.equal(logits(opened(out), inputs), before)


def test_a_packed_model_becomes_dense(out: Path, tmp_path: Path) -> None:
    model, inputs = opened(out), inputs_of("llama")
    before = logits(model, inputs)
    model.dequantize()
    assert not palette_sites(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(logits(model, inputs), before)
    model.save_pretrained(tmp_path / "dense again")
    again = opened(tmp_path / "dense again")
    assert torch.equal(logits(again, inputs), logits(model, inputs))


def test_copies_compute_and_save_as_the_model_does(out: Path, tmp_path: Path) -> None:
    model, inputs = opened(out), inputs_of("llama")
    for number, twin in enumerate([copy.deepcopy(model), pickle.loads(pickle.dumps(model))]):
        assert torch.equal(logits(twin, inputs), logits(model, inputs))
        twin.save_pretrained(tmp_path / f"{number}")
        assert torch.equal(logits(opened(tmp_path / f"{number}"), inputs), logits(model, inputs))


def test_a_device_map_of_one_device_is_followed(out: Path) -> None:
    pytest.importorskip("accelerate")
    expected = logits(opened(out), inputs_of("llama"))
    for device_map in ("cpu", "auto", {"": "cpu"}):
        model = opened(out, device_map=device_map)
        assert torch.equal(logits(model, inputs_of("llama")), expected)


def test_weights_on_the_disk_are_decoded_or_refused(out: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    places |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    options = {"device_map": places, "offload_folder": tmp_path / "offloaded"}
    with pytest.raises(CheckpointError, match="are not spread over cpu, disk"):
        opened(out, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = opened(out, **options, quantization_config=PaletteConfig(dequantize=True))
    expected = logits(opened(out), inputs_of("llama"))
    torch.testing.assert_close(logits(model, inputs_of("llama")), expected)


def test_a_folder_of_several_files_is_opened(tmp_path: Path) -> None:
    MODELS["llama"]().save_pretrained(tmp_path / "dense", max_shard_size="20KB")
    folder = palettized(tmp_path / "dense", tmp_path / "out", CONFIG)
    assert (folder / "palette.safetensors.index.json").is_file()
    model = opened(folder)
    with pytest.raises(StateError, match=r"holds palette-00001-of-"):
        model.save_pretrained(folder)
    model.save_pretrained(tmp_path / "one")
    assert torch.equal(
        logits(opened(tmp_path / "one"), inputs_of("llama")), logits(model, inputs_of("llama"))
    )
