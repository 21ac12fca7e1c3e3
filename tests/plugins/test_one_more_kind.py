"""A kind is one row and one file: a made-up one is served by all that goes by the table."""

from __future__ import annotations

import json

import pytest

# The file: interface, record and hook, as the kinds beside `plugins/kinds.py` have them.
KIND = """
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from palette_core.plugins.entries import PluginEntry
from palette_core.plugins.markers import hookspec


class Bell(ABC):
    @abstractmethod
    def ring(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class BellEntry(PluginEntry):
    factory: Callable[[Any], Bell]


@hookspec
def palette_core_bells():
    raise AssertionError("hook specifications are never called")
"""

PLUGIN = """
from palette_core.plugins import hookimpl
from {package}.bells import Bell, BellEntry


class Small(Bell):
    def ring(self):
        return "ding"


@hookimpl
def palette_core_bells():
    make = {"small": lambda options: Small(), "none": lambda options: 3, "off": Small}
    return [
        BellEntry(name=name, summary=f"a {name} bell", interface=1, factory=factory)
        for name, factory in make.items()
    ]
"""

# The row, put into the table before anything reads it; and what is then asked of the core.
USE = """
import json, os, sys

from palette_bells import bells
from palette_core.errors import PluginError
from palette_core.plugins import kinds

row = kinds.PluginKind(
    "bell", "bell", bells.palette_core_bells, bells.BellEntry, bells.Bell, PluginError
)
kinds.KINDS = (*kinds.KINDS, row)

os.environ["PALETTE_CORE_BLOCK"] = "bell:off"
from palette_core.plugins.catalog import get_catalog
from palette_core.plugins.making import make
from palette_core.testing import parametrize_contract

catalog = get_catalog()
told = {"rings": make(catalog[row].find("small"), {}).ask(lambda bell: bell.ring())}
for name, call in {
    "unknown": lambda: catalog[row].get("smal"),
    "wrong": lambda: make(catalog[row].find("none"), {}),
    "failing": lambda: make(catalog[row].find("small"), {}).ask(lambda bell: bell.toll()),
}.items():
    try:
        call()
    except PluginError as error:
        told[name] = str(error)


@parametrize_contract("palette-bells")
def checked(check):
    check()


told["checks"] = [each.id for each in checked.pytestmark[0].args[1]]
from palette_core.cli.app import app
from typer.testing import CliRunner

told["listed"] = CliRunner().invoke(app, ["plugins"]).output
print(json.dumps(told))
"""


@pytest.mark.slow
def test_a_kind_is_one_row_and_one_file(site) -> None:
    site.install("palette-bells", PLUGIN, bells=KIND)
    told = json.loads(site.run(USE))
    assert told["rings"] == "ding"
    assert told["unknown"].startswith("no bell is named 'smal'; installed: none, small; did you")
    assert told["unknown"].endswith("(blocked: bell:off)")
    assert "made 3, which is no Bell" in told["wrong"]
    assert told["failing"].startswith("bell 'small' (palette-bells 1.0) failed: AttributeError")
    assert {name.rpartition("/")[0] for name in told["checks"]} >= {"bell/small", "bell/none"}
    (line,) = [line for line in told["listed"].splitlines() if "small" in line]
    assert line.split()[:2] == ["bell", "small"]
    assert "bell:off" in told["listed"]
