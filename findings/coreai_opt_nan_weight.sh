#!/usr/bin/env bash
# coreai-opt 0.4.0: one weight that is NaN makes nearly every entry NaN, without a word.
#
# k-means takes the weight as it is, means become NaN, and nearly every weight decodes to NaN. Nothing
# is raised or logged. One would expect an error that names the tensor, or one NaN weight.
#
# Seen on Linux x86-64 with Python 3.11, torch 2.13.0, coreai-opt 0.4.0:
#     1 weight of 256 is NaN
#     most are after prepare()
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 torchao==0.18.0 coreai-opt==0.4.0 numpy==2.3.5
export PATH="$folder/env/bin:$PATH" TORCH_EXTENSIONS_DIR="$folder/built"
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
import torch
from coreai_opt.palettization import KMeansPalettizer

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 16)).eval()
with torch.no_grad():
    model[0].weight[0, 0] = float("nan")
KMeansPalettizer(model).prepare((torch.ones(1, 16),))
lost = int(model[0].weight.isnan().sum())
print("1 weight of 256 is NaN")
print(f"{'most are' if lost > 200 else 'few are'} after prepare()")
assert lost > 200, f"coreai-opt does otherwise now: {lost}"
PY
