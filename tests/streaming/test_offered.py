"""Models of checkpoints that installed distributions build, for calibration block by block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checkpoint_folders import content
from small_decoders import batches, config, decoder, skeleton_of, write_decoder

from palette_core import palettize_checkpoint
from palette_core.errors import CheckpointError
from palette_core.streaming import offered


@dataclass(frozen=True)
class Point:
    name: str
    build: Callable[[Path], Any]

    @property
    def dist(self) -> Any:
        return SimpleNamespace(name=f"palette-{self.name}")

    def load(self) -> Callable[[Path], Any]:
        return self.build


@pytest.fixture
def install(monkeypatch) -> Callable[..., None]:
    def install(**builders: Callable[[Path], Any]) -> None:
        points = [Point(name, build) for name, build in builders.items()]
        monkeypatch.setattr(offered, "entry_points", lambda group: points)

    return install


def run(tmp_path: Path, out: str, **given: Any) -> dict[str, bytes]:
    src = write_decoder(decoder(), tmp_path / "src")
    palettize_checkpoint(src, config(), tmp_path / out, calibration=batches(), **given)
    return content(tmp_path / out)


def test_the_first_that_builds_the_model_is_taken(install, tmp_path: Path) -> None:
    def model(folder: Path) -> Any:
        assert (folder / "config.json").is_file()
        return skeleton_of(decoder())

    install(z=lambda folder: 1 / 0, b=model, a=lambda folder: None)
    assert run(tmp_path, "one") == run(tmp_path, "two", skeleton=skeleton_of(decoder()))


@pytest.mark.parametrize(
    ("builders", "says"),
    [
        ({}, "nothing is installed that builds it; give the model"),
        ({"b": lambda _: None, "a": lambda _: None}, "none of a, b builds it; give the model"),
        ({"a": lambda _: 1 / 0}, "palette-a failed to build the model of .*ZeroDivisionError"),
        ({"a": lambda _: "model"}, "'a' of palette-a returned a str for .* expected a torch"),
    ],
)
def test_what_cannot_be_built_is_told(install, tmp_path: Path, builders, says: str) -> None:
    install(**builders)
    with pytest.raises(CheckpointError, match=says):
        run(tmp_path, "out")
    assert not (tmp_path / "out").exists()


def test_blocked_distributions_are_not_asked(install, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PALETTE_CORE_BLOCK", "palette-a")
    install(a=lambda folder: 1 / 0)
    with pytest.raises(CheckpointError, match="nothing is installed"):
        run(tmp_path, "out")
