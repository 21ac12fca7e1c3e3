"""The page of the Python API shows every public name, and each has a docstring to show."""

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
    "palette_core.spec",
    "palette_core.storage",
    "palette_core.tensors",
    "palette_core.testing",
]


@pytest.fixture(scope="module")
def page() -> str:
    render = runpy.run_path(str(DOCS / "gen" / "api.py"))["on_page_markdown"]
    return render((DOCS / "api.md").read_text(encoding="utf8"))


@pytest.mark.parametrize("module", MODULES)
def test_the_page_shows_every_public_name(module: str, page: str) -> None:
    """In the section of its module: an entry, or a link to the entry of the same object."""
    (section,) = re.findall(rf"^## {re.escape(module)}$(.*?)(?=^## |\Z)", page, re.M | re.S)
    entries = set(re.findall(r"^::: (\S+)$", page, re.M))
    links = dict(re.findall(r"\[`(\w+)`\]\[([\w.]+)\]", section))
    public = importlib.import_module(module)
    for name in public.__all__:
        place = links.get(name, f"{module}.{name}")
        assert place in entries
        elsewhere, _, called = place.rpartition(".")
        assert getattr(importlib.import_module(elsewhere), called) is getattr(public, name)


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
