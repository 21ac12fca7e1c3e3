"""The reference's own documentation runs here, its imports renamed.

``PALETTE_REFERENCE_DOCS`` names a folder with pages of it, as text or Markdown; without it the test
is skipped, as none of them are in this repository. Python blocks of a page run one after the other,
YAML blocks are read. What is said in words around them is on the page `from-coreai-opt`.
"""

from __future__ import annotations

import copy
import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import palette_core

FOLDER = os.environ.get("PALETTE_REFERENCE_DOCS")
PAGES = sorted(
    path for end in ("txt", "md") for path in Path(FOLDER or os.devnull).glob(f"*.{end}")
)
FENCE = re.compile(r"^```(python|yaml)\n(.*?)^```", re.DOTALL | re.MULTILINE)
RENAMED = {
    "coreai_opt.palettization.spec": "palette_core.spec",
    "coreai_opt.palettization.config": "palette_core.config",
    "coreai_opt.palettization": "palette_core",
    "coreai_opt.quantization": "palette_core",
    "coreai_opt": "palette_core",
}


def palettizer_of_a_copy(model: nn.Module, config: Any = None) -> palette_core.KMeansPalettizer:
    """Return a palettizer of a fresh model: pages prepare one model twice, which both refuse."""
    return palette_core.KMeansPalettizer(copy.deepcopy(model), config)


def surroundings() -> dict[str, Any]:
    """Return what blocks take as given."""
    spec = palette_core.PalettizationSpec(n_bits=2, cluster_dim=2)
    module = palette_core.ModuleKMeansPalettizerConfig(
        op_state_spec={"weight": spec}, enable_fast_kmeans_mode=False
    )
    names = {name: getattr(palette_core, name) for name in palette_core.__all__}
    return names | {
        "KMeansPalettizer": palettizer_of_a_copy,
        "config": palette_core.KMeansPalettizerConfig(global_config=module),
        "example_inputs": (torch.ones(1, 8),),
        "model": nn.Sequential(nn.Linear(8, 16)),
        "nn": nn,
        "np": np,
        "torch": torch,
    }


def renamed(code: str) -> str:
    """Return code with the modules of the reference replaced by ours."""
    for theirs, ours in RENAMED.items():
        code = re.sub(rf"\b{re.escape(theirs)}\b(?!\.)", ours, code)
    assert "coreai_opt" not in code, code
    return code


@pytest.mark.skipif(not PAGES, reason="PALETTE_REFERENCE_DOCS names no folder of pages")
def test_blocks_of_the_reference_run() -> None:
    seen = []
    for page in PAGES:
        namespace = surroundings()
        for language, text in FENCE.findall(page.read_text("utf8")):
            seen.append(language)
            if language == "yaml":
                config = palette_core.KMeansPalettizerConfig.from_yaml(io.StringIO(text))
                assert not config.global_config.is_disabled or config.module_type_configs
                continue
            exec(compile(renamed(text), page.name, "exec"), namespace)
            if "model_1" in namespace:
                one, two = (namespace[name][0].weight for name in ("model_1", "model_2"))
                assert torch.equal(one, two)  # also where the page says that they differ
            if "config" in text and "nn.Linear" in text:
                assert isinstance(namespace["config"], palette_core.KMeansPalettizerConfig)
    assert {"python", "yaml"} <= set(seen)


def test_names_of_modules_are_replaced_whole() -> None:
    code = "from coreai_opt.palettization.spec import A\nimport coreai_opt.palettization as p"
    assert renamed(code) == "from palette_core.spec import A\nimport palette_core as p"
