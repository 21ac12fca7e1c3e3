"""Try what was installed from wheels: every plug-in is there, and every backend writes a file.

`tox -e wheels` builds the wheel of every distribution, installs them all into an environment of
their own, and runs this file there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch
from torch import nn

import palette_core
from palette_core import KMeansPalettizer, KMeansPalettizerConfig

NAMES = {
    ("clusterer", "lnq"),
    ("clusterer", "sklearn_kmeans"),
    ("export backend", "coreml"),
    ("export backend", "coreai"),
    ("export backend", "openvino"),
}
FILES = ("model.safetensors", "model.mlpackage", "model.aimodel", "model.xml")


def main() -> None:
    """Run in a folder of its own, so that nothing of a checkout is found."""
    installed = Path(palette_core.__file__)
    assert installed.is_relative_to(sysconfig.get_path("purelib")), f"{installed} is no wheel's"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        found = json.loads(palette("plugins", "--json"))
        assert not found["quarantined"], found["quarantined"]
        missing = NAMES - {(each["kind"], each["name"]) for each in found["plugins"]}
        assert not missing, missing
        palette("new-plugin", "palette-lloyd", "--kind", "clusterer")
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)).eval()
        inputs = (torch.randn(2, 32),)
        palettizer = KMeansPalettizer(model, KMeansPalettizerConfig.presets.w4())
        palettizer.prepare(inputs)
        for name in FILES:
            print("written:", palettizer.export(name, inputs).name)


def palette(*arguments: str) -> str:
    """Return what the command prints."""
    program = Path(sys.executable).with_name("palette")
    return subprocess.run(
        [program, *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


if __name__ == "__main__":
    main()
