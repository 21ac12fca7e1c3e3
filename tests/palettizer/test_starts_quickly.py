"""What is not loaded before a model is palettized, seen from a fresh process."""

from __future__ import annotations

import subprocess
import sys

import torch

SCRIPT = """
import sys
import torch
from palette_core import KMeansPalettizer, KMeansPalettizerConfig

before = "torch._dynamo" in sys.modules
spec = {"n_bits": 2, "algorithm": "lnq"}
rules = {"global_config": {"op_state_spec": {"weight": spec}}}
config = KMeansPalettizerConfig.from_dict({"kmeans_palettization_config": rules})
palettizer = KMeansPalettizer(torch.nn.Linear(32, 32).eval(), config)
inputs = (torch.randn(64, 32),)
palettizer.calibrate([inputs])
prepared = palettizer.prepare(inputs, show_progress=False)
prepared(*inputs)
print("compiler:", before, "torch._dynamo" in sys.modules)
"""


def test_a_model_is_palettized_without_the_compiler_being_loaded() -> None:
    """It takes longer to load than torch."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "compiler: False False"


def test_what_is_run_while_recorded_is_marked_as_torch_marks_it() -> None:
    from palette_core.palettizer.decoding import warn_of_dense_program

    @torch.compiler.assume_constant_result
    def of_torch() -> None: ...

    assert vars(warn_of_dense_program) == vars(of_torch)
