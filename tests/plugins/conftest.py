"""Real distributions on disk, which `importlib.metadata` discovers as it does installed ones."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from registering import register as register  # noqa: PLC0414 - a fixture for this folder

from palette_core.plugins.catalog import get_catalog

# A clusterer that needs nothing: entries evenly spread over each block's range.
GOOD = """
from pydantic import BaseModel, ConfigDict, Field
from palette_core.plugins import ClustererEntry, hookimpl


class Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    stretch: float = Field(default=1.0, gt=0)


def make(options):
    from {package}.work import Spread

    return Spread(options)


@hookimpl
def palette_core_clusterers():
    return [
        ClustererEntry(
            name=name, summary="evenly spread", interface=1, options=Options, factory=make
        )
        for name in {names!r}
    ]
"""

WORK = """
import torch
from palette_core.plugins import Clusterer
from palette_core.tensors.codebook import Codebook


class Spread(Clusterer):
    def __init__(self, options):
        self.options = options

    def fit(self, problem):
        low = problem.points.amin(1, keepdim=True).double()
        high = problem.points.amax(1, keepdim=True).double()
        steps = torch.linspace(0, 1, problem.n_entries, dtype=torch.float64)
        lut = low + steps[None, :, None] * (high - low) * self.options.stretch
        codes = (problem.points.double() - lut.transpose(1, 2)).abs().argmin(-1)
        return Codebook(lut, codes.to(torch.uint8))
"""


@dataclass
class SitePackages:
    """A folder that stands for ``site-packages``."""

    root: Path
    packages: set[str] = field(default_factory=set)

    def install(
        self,
        distribution: str,
        hooks: str,
        *,
        version: str = "1.0",
        entry_points: str | None = None,
        metadata: str | None = None,
        **modules: str,
    ) -> str:
        """Write a package with ``hooks.py`` and its ``dist-info``; return the package's name.

        In ``hooks`` and the other modules, ``{package}`` stands for the package's name.
        """
        package = distribution.replace("-", "_")
        self.packages.add(package)
        files = {f"{package}/__init__.py": ""}
        for module, source in {"hooks": hooks, **modules}.items():
            files[f"{package}/{module}.py"] = textwrap.dedent(source).replace("{package}", package)
        info = f"{package}-{version}.dist-info"
        files[f"{info}/METADATA"] = (
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
            if metadata is None
            else metadata
        )
        files[f"{info}/entry_points.txt"] = (
            f"[palette_core]\nmain = {package}.hooks\n" if entry_points is None else entry_points
        )
        for name, text in files.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(text)
        record = "".join(f"{name},{_digest(text)}\n" for name, text in files.items())
        (self.root / info / "RECORD").write_text(f"{record}{info}/RECORD,,\n")
        return package

    def install_good(self, distribution: str = "fake-good", *names: str) -> str:
        """Install a distribution that registers clusterers by name, and does it well."""
        hooks = GOOD.replace("{names!r}", repr(names or ("spread",)))
        return self.install(distribution, hooks, version="1.2.3", work=WORK)

    def run(self, script: str) -> str:
        """Run ``script`` in a fresh process that sees this folder; return what it prints."""
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env={**os.environ, "PYTHONPATH": str(self.root)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def _digest(text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
    return f"sha256={digest.decode()},{len(text.encode())}"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SitePackages]:
    """An empty folder on ``sys.path``; the catalog is forgotten before and after."""
    root = tmp_path / "site"
    root.mkdir()
    monkeypatch.syspath_prepend(root)
    get_catalog.cache_clear()
    installed = SitePackages(root)
    yield installed
    get_catalog.cache_clear()
    for module in list(sys.modules):
        if module.partition(".")[0] in installed.packages:
            del sys.modules[module]
