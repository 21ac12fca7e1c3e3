"""What pages are made of beside their text: commands, pictures, navigation."""

from __future__ import annotations

import ast
import json
import re
import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def generated(name: str) -> dict[str, object]:
    return runpy.run_path(str(DOCS / "gen" / f"{name}.py"))


# --- the command line ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def commands() -> str:
    return generated("commands")["on_page_markdown"]((DOCS / "cli.md").read_text("utf8"))


def test_the_page_shows_what_each_command_says_by_itself(commands, monkeypatch) -> None:
    from typer.testing import CliRunner

    from palette_core.cli.app import app

    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    names = [each.name or each.callback.__name__ for each in app.registered_commands]
    assert len(names) == len(set(names)) >= 12
    shared = commands.partition("## palette ")[0]
    for name in names:
        (section,) = re.findall(rf"^## palette {name}$(.*?)(?=^## |\Z)", commands, re.M | re.S)
        told = CliRunner().invoke(app, [name, "--help"])
        assert told.exit_code == 0
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", told.output.partition("Options")[2]))
        shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", section + shared))
        negated = {each for each in options if each.startswith("--no-")}
        assert options - negated - {"--help"} <= shown, name
        assert set(re.findall(r"^\| `(--[a-z-]+)", section, re.M)) <= options, name


# --- diagrams -----------------------------------------------------------------------------------


def blocks() -> list[str]:
    found = (
        re.findall(r"^```mermaid\n(.*?)^```$", p.read_text("utf8"), re.M | re.S) for p in PAGES
    )
    return [block for page in found for block in page]


def test_every_diagram_is_drawn_as_it_is_written() -> None:
    picture = generated("diagrams")["picture"]
    drawn = [picture(block) for block in blocks()]
    assert len(drawn) == len(list((DOCS / "diagrams").iterdir())) > 0
    for block, svg in zip(blocks(), drawn, strict=True):
        said = {"".join(node.itertext()) for node in ET.fromstring(svg).iter() if node.text}
        labels = re.findall(r'[\w]\["?([^"\]]+)"?\]|\|"?([^"|]+)"?\|', block)
        missing = {a or b for a, b in labels} - said
        assert not missing, missing


def test_a_diagram_that_has_changed_is_no_page() -> None:
    with pytest.raises(FileNotFoundError, match=r"tools/diagrams\.mjs"):
        generated("diagrams")["on_page_markdown"]("```mermaid\nflowchart TD\n```")


def test_diagrams_fetch_nothing() -> None:
    for path in (DOCS / "diagrams").iterdir():
        text = path.read_text("utf8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?:|@import|<script|<image", text), path.name


# --- navigation ---------------------------------------------------------------------------------


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf8")
    listed = re.findall(r"[\w/.-]+\.(?:md|ipynb)\b", text.partition("\nnav:")[2])
    there = [p.relative_to(DOCS).as_posix() for p in (*PAGES, *DOCS.rglob("*.ipynb"))]
    assert sorted(listed) == sorted(there)
    assert yaml.safe_load(text.partition("\nnav:")[0])["theme"]["font"] is False


# --- troubleshooting ----------------------------------------------------------------------------


def texts() -> list[str]:
    """Every text of the sources, with … where values are put in."""
    found = []
    for source in [*ROOT.glob("src/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py")]:
        for node in ast.walk(ast.parse(source.read_text("utf8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_message_of_the_page_is_one_that_there_is() -> None:
    page = (DOCS / "troubleshooting.md").read_text("utf8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.M)
    assert len(quoted) == len(set(quoted)) >= 50
    known = texts()
    for message in quoted:
        # A … at an end of the page's may stand for more of ours, and values are … in both.
        pattern = ".*".join(map(re.escape, message.split("…")))
        assert any(re.fullmatch(pattern, text, re.S) for text in known), message


# --- notebooks ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.ipynb")), ids=lambda path: path.name)
def test_cells_of_a_notebook_run(path: Path) -> None:
    """As the build of the documentation runs them, where an error is one of the build."""
    assert "mkdocs-jupyter:\n      execute: true" in (ROOT / "mkdocs.yml").read_text("utf8")
    cells = json.loads(path.read_text("utf8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    namespace = {"__name__": "__main__"}
    for cell in code:
        assert cell["outputs"] == []  # made by the build
        exec(compile("".join(cell["source"]), str(path), "exec"), namespace)
