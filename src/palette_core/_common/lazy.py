"""Names of a module that are imported when they are first asked for (PEP 562)."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy_names(
    module: str,
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` for a module, by the names in its stub.

    The stub beside it, which type checkers read, is the one place that says what is public, and
    where it is defined: ``from palette_core.errors import PaletteError as PaletteError``.

    Args:
        module: its ``__name__``.
    """
    where = _imports_of(module)

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(where[name]), name)
        setattr(sys.modules[module], name, value)  # asked for once
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[module]), *where})

    return get, names, sorted(where)


def _imports_of(module: str) -> dict[str, str]:
    """Return the modules of the names that a stub imports."""
    spec: Any = sys.modules[module].__spec__
    stub = str(Path(spec.origin).with_suffix(".pyi"))
    tree = ast.parse(spec.loader.get_data(stub))  # not open: packages may lie in an archive
    lines = [line for line in tree.body if isinstance(line, ast.ImportFrom)]
    return {alias.name: str(line.module) for line in lines for alias in line.names}
