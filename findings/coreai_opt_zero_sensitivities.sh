#!/usr/bin/env bash
# coreai-opt 0.4.0: sensitivities that are all zero make every weight NaN.
#
# A file read by `prepare(sensitivity_path=...)` is not checked: weighted means divide by the sum of
# the weights, zero. Such files come from frozen branches. `calibration_mode` itself writes ones there.
# One would expect plain k-means, or an error that names the tensor.
#
# Seen on Linux x86-64 with Python 3.11, torch 2.13.0, coreai-opt 0.4.0:
#     all ones:  0 of 256 weights are NaN
#     all zeros: 256 of 256 weights are NaN
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 torchao==0.18.0 coreai-opt==0.4.0 numpy==2.3.5
export PATH="$folder/env/bin:$PATH" TORCH_EXTENSIONS_DIR="$folder/built"
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
import tempfile
from pathlib import Path

import torch
from coreai_opt.palettization import KMeansPalettizer


def lost(value: float) -> int:
    """Return how many weights are NaN with one sensitivity everywhere."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16)).eval()
    path = Path(tempfile.mkdtemp()) / "sensitivities.pt"
    torch.save({"0.parametrizations.weight.original": torch.full((16, 16), value)}, path)
    KMeansPalettizer(model).prepare((torch.ones(1, 16),), str(path))
    return int(model[0].weight.isnan().sum())


ones, zeros = lost(1.0), lost(0.0)
print(f"all ones:  {ones} of 256 weights are NaN")
print(f"all zeros: {zeros} of 256 weights are NaN")
assert ones == 0
assert zeros == 256, "coreai-opt does otherwise now"
PY
