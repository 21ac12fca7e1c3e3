"""A page per hook for authors: signature, an example that keeps the contract, the contract."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from palette_core.plugins import kinds
from palette_core.plugins.kinds import KINDS
from palette_core.plugins.registries import Distribution
from palette_core.plugins.validation import collect_entries
from palette_core.testing import ContractTest, all_checks
from palette_core.testing._kit import Subject

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    kinds.CLUSTERER: "clusterers",
    kinds.GRANULARITY: "granularities",
    kinds.LUT_QUANTIZER: "lut-quantizers",
    kinds.TRAINING_STRATEGY: "training-strategies",
    kinds.EXPORT_BACKEND: "export-backends",
    kinds.SENSITIVITY_METRIC: "sensitivity-metrics",
    kinds.OPERATION: "operations",
    kinds.STORED_FORM: "stored-forms",
    kinds.COMMAND: "commands",
}


def text_of(kind: str) -> str:
    return (DOCS / "plugins" / f"{PAGES[kind]}.md").read_text(encoding="utf8")


def block(kind: str, title: str) -> str:
    found = re.search(rf'```python title="{title}"\n(.*?)```', text_of(kind), re.DOTALL)
    assert found, f"the page of {kind} has no block {title}"
    return found[1]


@pytest.fixture
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen", DOCS / "gen" / "contract.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def module_of(kind: str, title: str, tmp_path: Path, monkeypatch) -> ModuleType:
    module = ModuleType(f"page_{PAGES[kind].replace('-', '_')}_{title}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = tmp_path / f"{title}.py"
    path.write_text(block(kind, f"{title}.py"))
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    return module


def test_every_hook_has_a_kind_a_page_and_a_check() -> None:
    assert list(PAGES) == list(KINDS)
    assert {check.kind for check in all_checks()} == {*KINDS, "entry", "distribution"}
    listed = (DOCS.parent / "mkdocs.yml").read_text()
    assert all(f"plugins/{page}.md" in listed for page in PAGES.values())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_page_has_signature_interface_example_and_contract(kind, generator) -> None:
    hook = kind.hook
    page = text_of(kind)
    assert f"<!-- hook: {hook} -->" in page
    assert f"<!-- contract: {kind} -->" in page
    filled = generator.on_page_markdown(page)
    record = kind.record.__name__
    assert f"def {hook}() -> Iterable[{record}]" in filled
    assert f"class {record}(PluginEntry):" in filled
    assert re.search(r"^class \w+\((FrozenModel, )?ABC\):$", filled, re.MULTILINE)
    for check in all_checks():
        if check.kind == kind:
            assert f"* **`{check.name}`**: {check.contract}\n" in filled + "\n"
    assert "<!--" not in filled


def test_the_page_of_the_kit_has_what_holds_for_all(generator) -> None:
    filled = generator.on_page_markdown((DOCS / "plugins" / "testing.md").read_text())
    for check in all_checks():
        if check.kind in ("entry", "distribution"):
            assert f"* **`{check.name}`**: {check.contract}" in filled
    parameters = inspect.signature(
        sys.modules["palette_core.testing"].parametrize_contract
    ).parameters
    for name in list(parameters)[1:]:
        assert f"| `{name}` |" in filled


@pytest.mark.parametrize("marker", ["hook: palette_core_x", "interface: X", "contract: x"])
def test_a_marker_that_names_nothing_is_an_error(marker, generator) -> None:
    with pytest.raises(ValueError, match="there is no"):
        generator.on_page_markdown(f"<!-- {marker} -->")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_example_of_a_page_keeps_the_contract(kind, register, tmp_path, monkeypatch) -> None:
    module = module_of(kind, "hooks", tmp_path, monkeypatch)
    (entry,) = collect_entries(getattr(module, kind.hook), kind)
    register(entry)
    reader = None
    if kind is kinds.EXPORT_BACKEND:
        reader = module_of(kind, "reader", tmp_path, monkeypatch).read_weights
    calls = None
    if kind is kinds.OPERATION:
        calls = module_of(kind, "calls", tmp_path, monkeypatch).calls
    about = Distribution("palette-page", "1.0")
    subject = Subject(about, kind, entry, (entry.options(),), reader=reader, calls=calls)
    for check in all_checks():
        if check.kind in (kind, "entry") and check.applies(entry):
            ContractTest(check, subject)()
