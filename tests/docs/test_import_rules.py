"""The lists that must name every module do: import rules, and the table in how-it-fits.md."""

from __future__ import annotations

import configparser
import inspect
import pkgutil
import re
from pathlib import Path

import palette_core
from palette_core.plugins.kinds import KINDS

ROOT = Path(__file__).parents[2]
PUBLIC = {"errors", "plugins", "spec", "storage", "tensors", "testing", "version"}


def modules() -> set[str]:
    return {module.name for module in pkgutil.iter_modules(palette_core.__path__)}


def test_plugin_distributions_are_kept_from_everything_that_is_not_public() -> None:
    rules = configparser.ConfigParser()
    rules.read(ROOT / ".importlinter")
    forbidden = rules["importlinter:contract:distributions"]["forbidden_modules"].split()
    assert sorted(forbidden) == sorted(f"palette_core.{name}" for name in modules() - PUBLIC)


def test_how_it_fits_names_every_module_once() -> None:
    page = (ROOT / "docs" / "how-it-fits.md").read_text(encoding="utf8")
    table = page.partition("| modules | hold |")[2].partition("\n\n")[0]
    first_cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| ")]
    named = re.findall(r"`(\w+)`", " ".join(first_cells))
    assert sorted(named) == sorted(modules() - {"__main__"})


def test_the_promise_names_all_that_plugins_import_and_implement() -> None:
    rows = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf8").splitlines()
    (imported,) = [row for row in rows if row.startswith("| the modules that plug-ins import")]
    assert set(re.findall(r"`(\w+)`", imported.split("|")[1])) == PUBLIC
    (called,) = [row for row in rows if row.startswith("| what the core calls")]
    methods = {
        name
        for kind in [each.interface for each in KINDS if each.interface]
        for name, value in vars(kind).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    assert set(re.findall(r"`(\w+)`", called.split("|")[1])) == methods
