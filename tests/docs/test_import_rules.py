"""The lists that must name every module do: import rules, and the table in how-it-fits.md."""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import palette_core
from palette_core.plugins.kinds import KINDS

ROOT = Path(__file__).parents[2]
PUBLIC = ("errors", "plugins", "storage", "tensors")
# Built-ins compile their loops as the core does, work in the same memory, and assign points by
# the same passes.
SHARED = {
    "_common.autocast",
    "_common.kernels",
    "_common.scratch",
    "_common.threads",
    "_common.vector_code",
    "tensors.assignment",
}
SHARED |= {f"tensors.assignment.{name}" for name in ("blocks", "cpu", "device", "kernels")}
SOURCES = {
    "built-ins": ("src/palette_core/builtins", SHARED),
    "plug-ins": ("plugins", set()),
    "examples": ("examples/plugins", set()),
    "templates": ("src/palette_core/cli/templates", set()),
    "pages": ("docs/plugins", set()),
}
IMPORT = re.compile(r"^ *from palette_core(?:\.([\w.]+))? import (\([^)]*\)|.*)$", re.MULTILINE)


def modules() -> set[str]:
    return {module.name for module in pkgutil.iter_modules(palette_core.__path__)}


def imports_of(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield file, module and name of every import of the core, also those for type checkers."""
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".py", ".jinja", ".md") or "tests" in path.parts:
            continue
        for module, names in IMPORT.findall(path.read_text(encoding="utf8")):
            for name in names.strip("()").split(","):
                if name.strip():
                    yield str(path.relative_to(ROOT)), module, name.split(" as ")[0].strip()


@pytest.mark.parametrize("source", SOURCES)
def test_plug_ins_import_public_names_only(source: str) -> None:
    folder, more = SOURCES[source]
    found = list(imports_of(ROOT / folder))
    assert found
    for path, module, name in found:
        if module in more or (source == "built-ins" and module.startswith("builtins")):
            continue
        if source in ("templates", "pages") and module == "testing":
            continue  # in tests that an author writes
        assert module in ("", *PUBLIC), f"{path} imports palette_core.{module}"
        public = importlib.import_module(f"palette_core.{module}".rstrip("."))
        known = getattr(public, "__all__", None) or dir(public)
        assert name in known, f"{path} imports {name} from palette_core.{module}"


@pytest.mark.parametrize("name", [f"palette_core.{name}" for name in PUBLIC[1:]] + ["palette_core"])
def test_every_public_name_is_there(name: str) -> None:
    module = importlib.import_module(name)
    assert {*module.__all__} <= {*dir(module)}
    for each in module.__all__:
        assert getattr(module, each) is not None


def test_the_contract_of_import_linter_finds_what_is_not_listed() -> None:
    pytest.importorskip("importlinter")
    graph = pytest.importorskip("grimp").ImportGraph()
    for name in ("core", "core.open", "core.open.inside", "core.new", "plug", "plug.a", "plug.b"):
        graph.add_module(name)
    for imported in ("core.open", "core.open.inside", "core.new", "core", "plug.b"):
        details = {"line_number": 1, "line_contents": f"import {imported}"}
        graph.add_import(importer="plug.a", imported=imported, **details)
    options = {"source_packages": ["plug"], "library": "core", "allowed_modules": ["core.open"]}
    spec = importlib.util.spec_from_file_location("rules", ROOT / "tools" / "import_rules.py")
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    checked = rules.AllowedContract("plug-ins", {}, options).check(graph, verbose=False)
    strays = {stray["imported"] for stray in checked.metadata["strays"]}
    assert strays == {"core", "core.open.inside", "core.new"}


def test_how_it_fits_names_every_module_once() -> None:
    page = (ROOT / "docs" / "how-it-fits.md").read_text(encoding="utf8")
    table = page.partition("| modules | hold |")[2].partition("\n\n")[0]
    first_cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| ")]
    named = re.findall(r"`(\w+)`", " ".join(first_cells))
    assert sorted(named) == sorted(modules() - {"__main__"})


def test_the_promise_names_all_that_plugins_import_and_implement() -> None:
    rows = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf8").splitlines()
    (imported,) = [row for row in rows if row.startswith("| the modules that plug-ins import")]
    assert set(re.findall(r"`(\w+)`", imported.split("|")[1])) == {
        *PUBLIC,
        "testing",
        "palette_core",
    }
    (called,) = [row for row in rows if row.startswith("| what the core calls")]
    methods = {
        name
        for kind in [each.interface for each in KINDS if each.interface]
        for name, value in vars(kind).items()
        if inspect.isfunction(value)
        and not name.startswith("_")
        and not getattr(value, "__final__", False)  # for users to call, not to implement
    }
    assert set(re.findall(r"`(\w+)`", called.split("|")[1])) == methods
