"""Fills in what pages for authors of plug-ins say about hooks, interfaces and their contract.

MkDocs runs this file as a hook; signatures and sentences come from the code, so that a page
cannot say something else.
"""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any

from palette_core import plugins as interfaces
from palette_core.plugins.kinds import KINDS
from palette_core.testing import all_checks

MARKER = re.compile(r"^<!-- (hook|interface|contract): (.+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs hook: replace the markers of a page.

    Raises:
        ValueError: a marker names nothing.
    """
    return MARKER.sub(lambda found: _PARTS[found[1]](found[2]), markdown)


def hook_section(name: str) -> str:
    """Signature of a hook, and the record that it returns."""
    kind = next((kind for kind in KINDS if kind.hook == name), None)
    if kind is None:
        raise ValueError(f"there is no hook {name!r}")
    signature = str(inspect.signature(kind.hookspec)).replace("'", "")
    code = f"@hookimpl\ndef {name}{signature}: ..."
    about = (inspect.getdoc(kind.hookspec) or "").partition("\n\nExample::")[0]
    return f"```python\n{code}\n```\n\n{about}\n\n{_source(kind.record, interfaces)}"


def interface_section(name: str) -> str:
    """The source of an interface: signatures and docstrings."""
    if hasattr(interfaces, name):
        return _source(getattr(interfaces, name), interfaces)
    raise ValueError(f"there is no interface {name!r}")


def contract_section(kind: str) -> str:
    """One line per check."""
    rows = [
        f"* **`{check.name}`**: {check.contract}"
        for check in all_checks()
        if str(check.kind) == kind
    ]
    if not rows:
        raise ValueError(f"there is no check for {kind!r}")
    return "\n".join(rows)


def _source(kind: type, module: ModuleType) -> str:
    """The source under the name of the module that authors import it from."""
    return f"```python\n# {module.__name__}\n{inspect.getsource(kind).rstrip()}\n```"


_PARTS = {"hook": hook_section, "interface": interface_section, "contract": contract_section}
