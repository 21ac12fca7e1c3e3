"""First lines of docstrings are noun phrases or imperatives that a stranger understands."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    ROOT / "src" / "palette_core",
    *sorted(ROOT.glob("plugins/*/src")),
    *sorted(ROOT.glob("examples/plugins/*/src")),
]
# Half a question has to be read to its end; what somebody says is not what a function does.
FORBIDDEN = re.compile(r"(Say|Says|Tell|Tells|What|Whether|Who|How|Where|When|Why)\b")


def first_lines(source: Path) -> Iterator[tuple[int, str]]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source.read_text("utf8"))):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text.splitlines()[0]


@pytest.mark.parametrize("folder", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_begins_as_half_a_question(folder: Path) -> None:
    found = [
        f"{source.relative_to(ROOT)}:{line}: {text}"
        for source in sorted(folder.rglob("*.py"))
        for line, text in first_lines(source)
        if FORBIDDEN.match(text)
    ]
    assert found == []


@pytest.mark.parametrize("text", ["Say whether it is.", "What may be done.", "Whether it is."])
def test_such_a_line_is_found(text: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(f'def f():\n    """{text}"""\n')
    assert [(1, text)] == list(first_lines(tmp_path / "module.py"))
    assert FORBIDDEN.match(text)
