"""The page of the house says how long the way through is at most, and nothing on it climbs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_no_way_is_longer_than_the_page_says() -> None:
    run = [sys.executable, ROOT / "tools" / "way_through.py"]
    printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    figures = re.findall(r"^(\w+): (\d+) stays in \d+ modules, (\d+) climbs", printed, re.M)
    page = " ".join((ROOT / "docs" / "how-it-fits.md").read_text().split())
    told = re.search(r"`prepare\(.*?\)` makes (\d+) stays, `finalize` (\d+), and neither", page)
    assert told is not None
    assert [(name, climbs) for name, _, climbs in figures] == [("prepare", "0"), ("finalize", "0")]
    assert all(
        int(stays) <= int(n) for (_, stays, _), n in zip(figures, told.groups(), strict=True)
    )
