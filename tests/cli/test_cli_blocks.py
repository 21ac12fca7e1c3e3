"""``palette palettize-checkpoint --calibration``: block by block, with a model from a callable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_folders import content
from safetensors.torch import save_file
from small_decoders import batches, config, decoder, skeleton_of, write_decoder

from palette_core import palettize_checkpoint

FACTORY = """
from small_decoders import batches, decoder, skeleton_of


def build(folder):
    assert (folder / "config.json").is_file()
    return skeleton_of(decoder())


def one_by_one():
    return [{"input_ids": row[None]} for batch in batches() for row in batch["input_ids"]]


def fails(folder):
    raise KeyError("architectures")
"""


@pytest.mark.slow
def test_a_file_and_a_callable_give_the_batches(command, tmp_path: Path) -> None:
    src = write_decoder(decoder(), tmp_path / "src")
    config().to_yaml(tmp_path / "config.yaml")
    (tmp_path / "fac.py").write_text(FACTORY)
    rows = torch.cat([batch["input_ids"] for batch in batches()])
    save_file({"input_ids": rows}, tmp_path / "tokens.safetensors")
    start = ("palettize-checkpoint", src, "-c", "config.yaml", "--model", "fac.py:build")
    for out, given in (("a", "tokens.safetensors"), ("b", "fac.py:one_by_one")):
        code, _, err = command(*start, "-o", out, "--calibration", given)
        assert code == 0, err
    given = [{"input_ids": row[None]} for row in rows]
    skeleton = skeleton_of(decoder())
    palettize_checkpoint(src, config(), tmp_path / "c", calibration=given, skeleton=skeleton)
    assert content(tmp_path / "a") == content(tmp_path / "b") == content(tmp_path / "c")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "fac.py:build"], "--model is of no use alone; give --calibration"),
        (["--model", "fac.py:build", "--calibration", "no.safetensors"], "there is no file no"),
        (
            ["--model", "fac.py:build", "--calibration", "uneven.safetensors"],
            "uneven.safetensors holds input_ids [2, 3], mask [3, 3]; expected keyword inputs",
        ),
        (
            ["--model", "fac.py:fails", "--calibration", "tokens.safetensors"],
            "fac.py:fails failed: KeyError: 'architectures'",
        ),
    ],
)
def test_what_cannot_be_used_is_named(
    command, tmp_path: Path, arguments: list[str], says: str
) -> None:
    src = write_decoder(decoder(), tmp_path / "src")
    (tmp_path / "fac.py").write_text(FACTORY)
    ones = torch.ones(2, 3, dtype=torch.int64)
    save_file({"input_ids": ones}, tmp_path / "tokens.safetensors")
    mask = torch.ones(3, 3, dtype=torch.int64)
    save_file({"input_ids": ones, "mask": mask}, tmp_path / "uneven.safetensors")
    code, _, err = command("palettize-checkpoint", src, "-o", "out", *arguments)
    assert code != 0
    assert says in err
    assert not (tmp_path / "out").exists()
