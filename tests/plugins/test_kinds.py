"""The table of kinds: every row is whole, and the example of every hook runs."""

from __future__ import annotations

import inspect
import textwrap
from types import ModuleType

import pytest

from palette_core import plugins
from palette_core.errors import PaletteError
from palette_core.plugins.discovery import Discovery
from palette_core.plugins.entries import PluginEntry
from palette_core.plugins.kinds import KINDS, kind_of
from palette_core.plugins.lut_quantizers import KNOWN_DTYPES
from palette_core.plugins.registries import Distribution

ABOUT = Distribution("palette-example", "1.0")


def example_of(kind) -> ModuleType:
    text = inspect.getdoc(kind.hookspec).partition("Example::\n")[2]
    assert text.strip(), f"{kind.hook} has no example"
    module = ModuleType(f"example_{kind.slug.replace('-', '_')}")
    exec(compile(textwrap.dedent(text), kind.hook, "exec", dont_inherit=True), module.__dict__)
    return module


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_row_is_whole_and_public(kind) -> None:
    assert kind.hook.startswith("palette_core_")
    assert issubclass(kind.record, PluginEntry)
    assert issubclass(kind.error, PaletteError)
    for public in (kind.record, kind.interface):
        assert public is None or getattr(plugins, public.__name__) is public
    for field in ("slug", "title", "hook", "record"):
        assert len({getattr(other, field) for other in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_example_of_a_hook_registers_by_it(kind) -> None:
    found = Discovery()
    found.add(example_of(kind), ABOUT, "example")
    assert found.quarantined == []
    assert {k for k, v in found.entries.items() if v} == {kind}
    (item,) = found.entries[kind]
    assert kind_of(item.entry) is kind


def test_dtypes_of_tables_are_those_of_torch() -> None:
    import torch

    known = {str(d).removeprefix("torch.") for d in vars(torch).values() if type(d) is torch.dtype}
    assert set(KNOWN_DTYPES) <= known
    entry = plugins.LutQuantizerEntry(
        name="x", summary="s", interface=1, factory=lambda *_: None, dtypes=("int8", "nonsense")
    )
    with pytest.raises(ValueError, match=r"torch has no 'nonsense'; names are int8, "):
        entry.check()
