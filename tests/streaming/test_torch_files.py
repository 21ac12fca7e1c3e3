"""Dense checkpoints of ``torch.save``: the palettes of safetensors files, and no code run."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_folders import CONFIG, tensors, write_folder
from torch import nn
from typer.testing import CliRunner

from palette_core import palettize_checkpoint
from palette_core.cli.app import app
from palette_core.errors import CheckpointError
from palette_core.streaming.formats.torch_files import read_torch_file
from palette_core.streaming.source import open_source
from palette_core.streaming.verifying import compare_checkpoints, read_manifest


def write_torch_folder(folder: Path, shards: int) -> None:
    """Write what `write_folder` writes, by ``torch.save``, with names of Hugging Face's."""
    folder.mkdir()
    found = tensors()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_moe"}))
    (folder / "tokenizer.json").write_text("{}")
    if shards == 1:
        torch.save(found, folder / "pytorch_model.bin")
        return
    places = {
        name: f"pytorch_model-{number % shards + 1:05d}-of-{shards:05d}.bin"
        for number, name in enumerate(found)
    }
    for file in sorted(set(places.values())):
        torch.save({n: t for n, t in found.items() if places[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("shards", [1, 2])
def test_palettes_are_those_of_the_same_weights_in_safetensors(tmp_path, shards):
    write_folder(tmp_path / "safe", shards=shards)
    write_torch_folder(tmp_path / "torch", shards)
    (tmp_path / "torch" / "training_args.bin").write_bytes(b"something else")
    for name in ("safe", "torch"):
        palettize_checkpoint(tmp_path / name, CONFIG, tmp_path / f"{name}-out")
    checks = compare_checkpoints(tmp_path / "safe", tmp_path / "torch-out")
    assert checks.passed, checks
    safe, of_torch = (read_manifest(tmp_path / f"{name}-out").value for name in ("safe", "torch"))
    assert safe["tensors"].keys() == of_torch["tensors"].keys()
    assert all(
        told["palettized"] == of_torch["tensors"][name]["palettized"]
        for name, told in safe["tensors"].items()
        if "palettized" in told
    )
    written = {path.name for path in (tmp_path / "torch-out").iterdir()}
    assert written == {path.name for path in (tmp_path / "safe-out").iterdir()}


def test_spans_are_the_very_bytes_of_each_tensor(tmp_path):
    shared = torch.randn(6, 4)
    states: dict[str, Any] = {
        "a": shared,
        "tied": shared,
        "rows": shared[2:5],
        "parameter": nn.Parameter(torch.randn(3)),
        "scalar": torch.tensor(3),
        "none": torch.empty(0, 4),
        "small": torch.randn(3).to(torch.float8_e4m3fn),
        "flags": torch.tensor([True, False]),
        "half": torch.randn(5).to(torch.bfloat16),
    }
    torch.save(states, tmp_path / "model.pt")
    spans = read_torch_file(tmp_path / "model.pt").spans
    assert list(spans) == list(states)
    for name, right in states.items():
        found = spans[name].mapped()
        assert found.dtype is right.dtype
        assert found.shape == right.shape
        assert found.flatten().view(torch.uint8).equal(right.detach().flatten().view(torch.uint8))


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module", "params"])
def test_a_dictionary_beside_the_state_of_a_training_is_found(tmp_path, wrapper):
    found = tensors()
    torch.save({"epoch": 3, wrapper: found, "optimizer": {}}, tmp_path / "last.ckpt")
    (shard,) = open_source(tmp_path / "last.ckpt").shards
    assert shard.spans["model.norm.weight"].mapped().equal(found["model.norm.weight"])


def test_weights_of_safetensors_are_taken_where_both_are_there(tmp_path):
    write_folder(tmp_path / "src", shards=1)
    torch.save({"other": torch.zeros(2)}, tmp_path / "src" / "pytorch_model.bin")
    (shard,) = open_source(tmp_path / "src").shards
    assert shard.path.name == "model.safetensors"


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"model_type": "llama"}, ["model.embed_tokens.weight"]),
        ({"tie_word_embeddings": False}, ["model.embed_tokens.weight", "lm_head.weight"]),
        (None, ["model.embed_tokens.weight", "lm_head.weight"]),
    ],
)
def test_tied_weights_are_one_where_a_configuration_ties_them_again(tmp_path, config, names):
    shared = torch.randn(32, 16)
    states = {"model.embed_tokens.weight": shared, "lm_head.weight": shared}
    empty = {"none": torch.empty(0), "nothing": torch.empty(0)}
    torch.save(states | empty, tmp_path / "pytorch_model.bin")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert [span.name for span in open_source(tmp_path).spans()] == [*names, *empty]


def test_another_dictionary_is_another_source(tmp_path):
    """What an unfinished run compares is the names and shapes of each file."""
    found = {}
    for name in ("one", "two"):
        torch.save({f"{name}.weight": torch.zeros(4, 4)}, tmp_path / "model.bin")
        found[name] = read_torch_file(tmp_path / "model.bin").header_checksum
    torch.save({"two.weight": torch.ones(4, 4)}, tmp_path / "model.bin")
    assert found["one"] != found["two"]
    assert found["two"] == read_torch_file(tmp_path / "model.bin").header_checksum


class Ours:
    """Something that only running code gives back."""


def save_an_object(path: Path) -> None:
    torch.save({"a": Ours()}, path)


def save_a_module(path: Path) -> None:
    torch.save(nn.Linear(2, 2), path)


def save_a_program(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.randn(1, 2)), path)


def save_as_before(path: Path) -> None:
    torch.save({"a": torch.zeros(4)}, path, _use_new_zipfile_serialization=False)


def save_no_tensors(path: Path) -> None:
    torch.save({"a": torch.zeros(4), "b": 3}, path)


def save_a_list(path: Path) -> None:
    torch.save([torch.zeros(4)], path)


def save_a_view(path: Path) -> None:
    torch.save({"a.weight": torch.zeros(4, 3).t()}, path)


def save_a_conjugate(path: Path) -> None:
    torch.save({"a.weight": torch.zeros(4, 3, dtype=torch.complex64).conj()}, path)


def save_complex(path: Path) -> None:
    torch.save({"a.weight": torch.zeros(4, dtype=torch.complex128)}, path)


def save_sparse(path: Path) -> None:
    torch.save({"a.weight": torch.eye(4).to_sparse()}, path)


def cut(path: Path) -> None:
    torch.save({"a": torch.randn(64)}, path)
    path.write_bytes(path.read_bytes()[:-100])


def write_an_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "b")


def swap_bytes(path: Path) -> None:
    torch.save({"a": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in entries.items():
            archive.writestr(name, b"big" if name.endswith("byteorder") else value)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (save_an_object, "nothing but tensors"),
        (save_a_module, "nothing but tensors"),
        (save_a_program, "nothing but tensors"),
        (save_as_before, "before 1.6"),
        (save_no_tensors, "'b' is a int"),
        (save_a_list, "a list"),
        (save_a_view, r"a\.weight is a view .*contiguous"),
        (save_a_conjugate, r"a\.weight is a view .*resolve_conj"),
        (save_complex, "complex128"),
        (save_sparse, "sparse"),
        (cut, "truncated"),
        (write_an_archive, "no data.pkl"),
        (swap_bytes, "big order"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_holds_no_whole_state_dictionary_is_refused(tmp_path, write, message):
    path = tmp_path / "model.bin"
    write(path)
    with pytest.raises(CheckpointError, match=message) as raised:
        palettize_checkpoint(path, CONFIG, tmp_path / "out")
    assert str(path) in str(raised.value)
    assert "weights_only=False" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_would_lie_outside_of_the_file_is_refused(tmp_path):
    torch.save({"a.weight": torch.zeros(64, 64)}, tmp_path / "model.bin")
    whole = read_torch_file(tmp_path / "model.bin").spans["a.weight"]
    (tmp_path / "model.bin").write_bytes((tmp_path / "model.bin").read_bytes()[: whole.begin + 8])
    with pytest.raises(CheckpointError, match="become shorter"):
        whole.mapped()


def test_commands_take_such_a_file_for_a_checkpoint(tmp_path):
    write_torch_folder(tmp_path / "src", 1)
    for source in (tmp_path / "src", tmp_path / "src" / "pytorch_model.bin"):
        planned = CliRunner().invoke(app, ["plan", str(source), "--json"])
        assert planned.exit_code == 0, planned.output
        assert "model.layers.0.self_attn.q_proj" in planned.output
