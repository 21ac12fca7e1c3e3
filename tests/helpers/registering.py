"""Plug-ins in the catalog for the time of a test, and distributions on disk."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import palette_core.plugins.catalog as plugins
from palette_core.plugins import PluginEntry
from palette_core.plugins.catalog import discover, get_catalog
from palette_core.plugins.kinds import kind_of
from palette_core.plugins.registries import Distribution, Registered

WRONG = Distribution("wrong-plugin", "6.6")


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[PluginEntry], None]]:
    """Put an entry into the catalog, as if its distribution were installed."""

    def put(entry: PluginEntry) -> None:
        catalog, kind = get_catalog(), kind_of(entry)
        registry = catalog[kind]
        more = replace(registry, items=(*registry.items, Registered(entry, WRONG)))
        catalog = replace(catalog, by_kind={**catalog.by_kind, kind: more})
        monkeypatch.setattr(plugins, "discover", lambda: catalog)
        get_catalog.cache_clear()

    yield put
    monkeypatch.setattr(plugins, "discover", discover)
    get_catalog.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Install the distribution ``wrong-plugin`` with the given hooks, for new processes too."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    def write(hooks: str) -> None:
        info = tmp_path / "wrong_plugin-6.6.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wrong-plugin\nVersion: 6.6\n")
        (info / "entry_points.txt").write_text("[palette_core]\nmain = wrong_plugin_hooks\n")
        (tmp_path / "wrong_plugin_hooks.py").write_text(textwrap.dedent(hooks))
        get_catalog.cache_clear()

    yield write
    sys.modules.pop("wrong_plugin_hooks", None)
    get_catalog.cache_clear()
