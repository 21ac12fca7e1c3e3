"""A backend of functions that writes what it was told, and a factory, for tests of commands."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import pytest

from palette_core.plugins.catalog import get_catalog

FACTORY = """
    import torch
    from torch import nn

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, left, right):
            return self.inner(left) + right

    class Twice(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x, x)

    def load():
        torch.manual_seed(0)
        return Two(), (torch.randn(2, 16), torch.randn(2, 16))

    def one():
        return (torch.randn(1, 16),)

    def broken(*model):
        raise KeyError("why")
"""

BACKEND = """
    import json

    from pydantic import BaseModel, ConfigDict
    from torch.utils._pytree import tree_map
    from palette_core.plugins import Backend, ExportBackendEntry, hookimpl

    class Options(BaseModel):
        model_config = ConfigDict(frozen=True, extra="forbid")

    class Teller(Backend):
        def __init__(self, options):
            pass

        def check_support(self, facts):
            return None

        def finalize(self, model, palettized):
            return model

        def export(self, model, example_inputs, path, dynamic_shapes=None):
            path.write_text("{}")
            return path

        def export_functions(self, model, request, path):
            path.write_text(json.dumps({
                "metadata": request.metadata,
                "names": [request.input_names, request.output_names, request.state_names],
                "functions": {name: [
                    type(each.module).__name__,
                    tree_map(lambda x: f"{x.dtype}{list(x.shape)}", each.inputs),
                    repr(each.dynamic_shapes),
                    each.output_names,
                ] for name, each in request.functions.items()},
            }))
            return path

    @hookimpl
    def palette_core_export_backends():
        return [ExportBackendEntry(
            name="teller", summary="writes what it is told", interface=1,
            factory=Teller, options=Options, suffix=".told", takes_functions=True,
        )]
"""


@pytest.fixture
def teller(command, tmp_path, monkeypatch):
    """Run the command where ``fac.py`` is and the backend is installed."""
    (tmp_path / "fac.py").write_text(textwrap.dedent(FACTORY))
    (tmp_path / "functions_hooks.py").write_text(textwrap.dedent(BACKEND))
    info = tmp_path / "teller-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: teller\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[palette_core]\nteller = functions_hooks\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    get_catalog.cache_clear()
    yield command
    sys.modules.pop("functions_hooks", None)
    get_catalog.cache_clear()


def told(path: str) -> dict:
    """Return what the backend has written."""
    return json.loads(Path(path).read_text())
