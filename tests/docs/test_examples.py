"""Examples of plug-ins stay short, have a page, and are tested."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent for path in (ROOT / "examples" / "plugins").glob("*/pyproject.toml"))


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_and_has_its_page(example: Path) -> None:
    sources = [*example.glob("src/**/*.py")]
    assert 0 < sum(len(s.read_text("utf8").splitlines()) for s in sources) < 150
    place = f"examples/plugins/{example.name}"
    pages = [*(ROOT / "docs" / "plugins" / "examples").glob("*.md")]
    assert any(f"`{place}` is" in page.read_text("utf8") for page in pages)
    tox = (ROOT / "tox.ini").read_text("utf8")
    assert f"-e {place}\n" in tox
    assert f"    {place}/tests\n" in tox
