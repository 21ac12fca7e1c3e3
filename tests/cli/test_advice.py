"""What the command line says of plug-ins that are not installed works in a checkout."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from palette_core.cli import app, main
from palette_core.cli.advice import known_plugins
from palette_core.errors import MissingBackendError

ROOT = Path(__file__).parents[2]


def project(folder: str) -> dict[str, object]:
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text("utf8"))["project"]


def test_every_command_installs_its_distribution_and_the_page_of_it_says_the_same() -> None:
    known = known_plugins()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
    backends = set(known["suffixes"].values())
    assert {extras["optional-dependencies"][name][0] for name in backends} == {
        *known["from a checkout"]
    }
    for distribution, command in known["from a checkout"].items():
        *_, folder = folders = [word for word in command.split() if word.startswith("plugins/")]
        assert project(folder)["name"] == distribution
        needed = {project(each)["name"] for each in folders} | {"palette-core"}
        required = {Requirement(text).name for text in project(folder)["dependencies"]}
        assert {name for name in required if "palette" in name} <= needed
        assert command in (ROOT / folder / "README.md").read_text("utf8")


def test_a_missing_plug_in_is_told_with_its_command(monkeypatch, capsys) -> None:
    def missing(**_: object) -> int:
        raise MissingBackendError("it is not installed", name="palette-core-coreml")

    monkeypatch.setattr(app, "app", missing)
    with pytest.raises(SystemExit):
        main()
    told = " ".join(capsys.readouterr().err.split())
    assert "it is not installed; from a checkout of palette_core: pip install" in told
    assert "-e plugins/coreml_backend" in told
