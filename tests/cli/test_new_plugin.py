"""`palette new-plugin`: what it makes installs, is listed, and keeps its contract."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType

import pytest

from palette_core.cli import main
from palette_core.cli.new_plugin import make_plugin, offered
from palette_core.errors import ConfigError, MissingExtraError
from palette_core.plugins.kinds import KINDS, kind_named

# pip takes no constraints for builds that it does not isolate.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PIP_BUILD_CONSTRAINT"}


MODEL = """
import torch
from torch import nn

def load():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    return model, (torch.ones(1, 64),)
"""
# Does what the README of each folder says of its use.
USE = r"""
import re, shlex, sys
from pathlib import Path
from typer.testing import CliRunner
from model import load
from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core.cli.app import app

packed = KMeansPalettizer(load()[0])
packed.prepare(load()[1])
packed.export("packed.safetensors", backend="packed")
for folder in sys.argv[1:]:
    text = (Path(folder) / "README.md").read_text().partition("## What to change")[0]
    language, code = re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)[-1]
    model, inputs = load()
    if language == "yaml":
        Path("config.yaml").write_text(code)
        config = KMeansPalettizerConfig.from_yaml("config.yaml")
        palettizer = KMeansPalettizer(model, config)
        palettizer.prepare(inputs)
        with palettizer.training_mode():
            assert len(model[0].weight[:4, :4].unique()) <= 16, folder
    elif language == "python":
        palettizer = KMeansPalettizer(model)
        palettizer.prepare(inputs)
        exec(code)
        assert Path("model.npz").stat().st_size, folder
    else:
        command = shlex.split(code.replace("FACTORY", "model.py:load"))
        assert command.pop(0) == "palette"
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        if "allocate" not in command:
            assert "0.weight" in done.output, folder
            continue
        assert "n_bits" in Path("chosen.yaml").read_text(), folder
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**ENVIRONMENT, "COLUMNS": "200", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that sees what this one has installed, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, system_site_packages=True)
    found = folder / "bin" / "python"
    own = run(found, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    # As `site` does it, so that editable installs in there are seen too.
    lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
    Path(own.strip(), "parent.pth").write_text("".join(lines))
    return found


@pytest.fixture
def copier() -> ModuleType:
    return pytest.importorskip("copier")


@pytest.mark.slow
@pytest.mark.usefixtures("copier")
def test_what_is_made_installs_is_listed_and_keeps_its_contract(python, tmp_path) -> None:
    """Of every kind, and is used as its README says; in one environment, to start torch less."""
    folders = [make_plugin(f"palette-my-{kind}", kind, tmp_path) for kind in offered()]
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation")
    run(python, *install, *folders, cwd=tmp_path)
    listed = run(python, "-m", "palette_core", "plugins", cwd=tmp_path).splitlines()
    command = ("-m", "pytest", "-v", "-p", "no:cacheprovider", "--import-mode=importlib")
    command += ("--rootdir", ".")
    tested = run(python, *command, *folders, cwd=tmp_path).splitlines()
    for kind in offered():
        (line,) = [line for line in listed if f"palette-my-{kind} 0.1.0" in line]
        assert line.split(f"my_{kind.replace('-', '_')}")[0].strip() == kind_named(kind).title
        mine = [line for line in tested if f"palette-my-{kind}/tests/" in line]
        assert len(mine) > 8
        assert all(" PASSED " in line for line in mine), mine
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "use.py").write_text(USE)
    run(python, "use.py", *folders, cwd=tmp_path)


@pytest.mark.usefixtures("copier")
@pytest.mark.parametrize("kind", offered())
def test_the_readme_says_what_to_change(kind, tmp_path) -> None:
    folder = make_plugin("palette-thing", kind, tmp_path)
    readme = (folder / "README.md").read_text()
    named = [word for word in readme.split("`") if word.startswith(("src/", "tests/", "pyproject"))]
    assert len(named) >= 4
    assert all((folder / name).is_file() for name in named)
    assert "`thing`" in readme
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.suffix != ".jinja"
            text = path.read_text()
            assert not any(mark in text for mark in ("{{", "{%", "}}")), path
            if path.suffix == ".py":
                compile(text, str(path), "exec")


@pytest.mark.parametrize(
    "name", ["Palette-X", "palette_x", "1palette", "palette--x", "-x", "x-", "../x", "", "a b"]
)
def test_names_that_cannot_be_packages_are_refused(name, tmp_path) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a distribution"):
        make_plugin(name, "clusterer", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_there_is_a_template_of_every_kind(tmp_path) -> None:
    assert offered() == [kind.slug for kind in KINDS]
    with pytest.raises(
        ConfigError, match="no kind of plug-in 'clustrer'; did you mean 'clusterer'"
    ):
        make_plugin("palette-x", "clustrer", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_exists_is_written_over(tmp_path) -> None:
    (tmp_path / "palette-x").mkdir()
    with pytest.raises(ConfigError, match="palette-x exists"):
        make_plugin("palette-x", "clusterer", tmp_path)


def test_without_copier_it_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "copier", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'palette-core\[new-plugin\]'"):
        make_plugin("palette-x", "clusterer", tmp_path)


@pytest.mark.usefixtures("copier")
def test_on_the_command_line(tmp_path, monkeypatch, capsys) -> None:
    command = ["palette", "new-plugin", "palette-x", "--kind", "backend", "--into", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert "README.md says how to install it" in capsys.readouterr().out
    assert (tmp_path / "palette-x" / "src" / "palette_x" / "backend.py").is_file()
