"""The pages of the Python API show every public name, with an example, and a docstring each."""

from __future__ import annotations

import importlib
import inspect
import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
MODULES = [
    "palette_core",
    "palette_core.config",
    "palette_core.plugins",
    "palette_core.programs",
    "palette_core.spec",
    "palette_core.storage",
    "palette_core.tensors",
    "palette_core.testing",
]
GENERATOR = runpy.run_path(str(DOCS / "gen" / "api.py"))


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    render = GENERATOR["on_page_markdown"]
    paths = sorted((DOCS / "api").glob("*.md"))
    return {path.stem: render(path.read_text(encoding="utf8")) for path in paths}


def test_every_page_is_looked_at(pages) -> None:
    assert {*pages} - {"errors"} == {*GENERATOR["ORDER"]}  # which has no names of a list
    index = (DOCS / "api.md").read_text("utf8")
    assert {*re.findall(r"\(api/(\w+)\.md\)", index)} == {*pages}


@pytest.mark.parametrize("module", MODULES)
def test_the_pages_show_every_public_name(module: str, pages) -> None:
    """An entry, or a link to the entry of the same object."""
    shown = "\n".join(pages.values())
    entries = re.findall(r"^::: (\S+)$", shown, re.M)
    assert len(entries) == len({*entries})
    links = {(place.rpartition(".")[2], place) for _, place in LINK.findall(shown)}
    public = importlib.import_module(module)
    for name in public.__all__:
        if name == "__version__":
            continue  # a text, which an example prints
        own = f"{module}.{name}"
        places = [own] if own in entries else [place for at, place in links if at == name]
        assert places, own
        for place in places:
            assert place in entries
            elsewhere, _, called = place.rpartition(".")
            assert getattr(importlib.import_module(elsewhere), called) is getattr(public, name)


LINK = re.compile(r"\[`(\w+)`\]\[([\w.]+)\]")


@pytest.mark.parametrize("module", MODULES)
def test_an_example_has_every_public_name(module: str) -> None:
    """In a block that `test_code_blocks` runs."""
    texts = [path.read_text("utf8") for path in (DOCS / "api").glob("*.md")]
    texts += [path.read_text("utf8") for path in (DOCS / "plugins").rglob("*.md")]
    code = "\n".join(
        b for t in texts for b in re.findall(r"^```python[^\n]*\n(.*?)^```", t, re.M | re.S)
    )
    used = {*re.findall(r"\w+", code)}
    assert {*importlib.import_module(module).__all__} - used == set()


@pytest.mark.parametrize("module", MODULES)
def test_every_public_class_and_function_has_a_docstring(module: str) -> None:
    public = importlib.import_module(module)
    values = {name: getattr(public, name) for name in public.__all__}
    bare = [
        name
        for name, value in values.items()
        if (inspect.isclass(value) or inspect.isroutine(value)) and not inspect.getdoc(value)
    ]
    assert bare == []
