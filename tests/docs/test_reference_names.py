"""The page for those who come from coreai-opt: every name of ours that it gives is there."""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "from-coreai-opt.md"
ROW = re.compile(
    r"\| `(?P<theirs>[\w.]+(\(\w+=\))?)` \| `(?P<ours>[\w.]+(\(\w+=\))?)` \| (?P<text>.+) \|"
)


def rows() -> list[tuple[str, str, str]]:
    found = [ROW.fullmatch(line) for line in PAGE.read_text().splitlines()]
    return [(match["theirs"], match["ours"], match["text"]) for match in found if match]


def resolve(package: str, name: str) -> Any:
    """Return what a name stands for: a module, an attribute, a field, a parameter."""
    path, _, parameter = name.removesuffix("=)").partition("(")
    found: Any = importlib.import_module(package)
    for part in path.split("."):
        if part in getattr(found, "model_fields", {}):
            found = found.model_fields[part]
        elif hasattr(found, part):
            found = getattr(found, part)
        else:
            found = importlib.import_module(f"{found.__name__}.{part}")
    return inspect.signature(found).parameters[parameter] if parameter else found


def test_every_row_is_read():
    names = PAGE.read_text().partition("## What was wrong there")[0].splitlines()
    assert [line for line in names if line.startswith("| `") and not ROW.fullmatch(line)] == []
    assert len({theirs for theirs, _, _ in rows()}) == len(rows()) > 70


@pytest.mark.parametrize("ours", sorted({ours for _, ours, _ in rows()}))
def test_names_of_ours_are_there(ours):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        resolve("palette_core", ours)


@pytest.mark.peer
@pytest.mark.parametrize("theirs", [theirs for theirs, _, _ in rows()])
def test_names_of_the_reference_are_there(theirs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resolve("coreai_opt", theirs)


@pytest.mark.peer
def test_every_public_name_of_the_reference_has_a_row():
    from pydantic import BaseModel

    named = {theirs for theirs, _, _ in rows()}
    modules = ("palettization", "palettization.config", "palettization.spec")
    wanted: set[str] = set()
    leaves = {name.rpartition(".")[2] for name in named}
    for module in modules:
        package = importlib.import_module(f"coreai_opt.{module}")
        for name in package.__all__:
            wanted.add(name)
            value = getattr(package, name)
            if isinstance(value, type) and issubclass(value, BaseModel):
                wanted |= set(value.model_fields)
    assert wanted - leaves == set()
