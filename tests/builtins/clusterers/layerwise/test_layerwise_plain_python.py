"""Kernels left plain Python, as debuggers want them: slow, and with the same results."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import json
import sys

import torch

from palette_core import KMeansPalettizer, KMeansPalettizerConfig

torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3, padding=1),
    torch.nn.Conv2d(4, 4, 3, padding=1, groups=4),
    torch.nn.Flatten(),
    torch.nn.Linear(256, 6),
)
batches = [(torch.randn(2, 3, 8, 8),) for _ in range(2)]
spec = {"n_bits": 2, "granularity": {"type": "per_tensor"}, "algorithm": sys.argv[1]}
settings = {"global_config": {"op_state_spec": {"weight": spec}}}
config = KMeansPalettizerConfig.from_dict({"kmeans_palettization_config": settings})
palettizer = KMeansPalettizer(net.eval(), config)
palettizer.calibrate(batches, sequential=True)
palettizer.prepare(batches[0], show_progress=False)
print(json.dumps([row.objective_after for row in palettizer.report.tensors]))
"""


@pytest.mark.parametrize("algorithm", ["gptq", "lnq"])
def test_nothing_has_to_be_compiled(algorithm):
    found = []
    for disabled in ("0", "1"):
        environment = {**os.environ, "NUMBA_DISABLE_JIT": disabled}
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, algorithm]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
