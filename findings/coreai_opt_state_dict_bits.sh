#!/usr/bin/env bash
# coreai-opt 0.4.0: prepare(state_dict=) takes tables of another number of bits than the config's.
#
# The dictionary of a model prepared with 4 bits loads where the config says 2: the model has the 16
# values of the dictionary, and whatever goes by the config (sizes, exports) is told 2. A mismatch of
# keys is refused. One would expect the table's size to be checked as well.
#
# Seen on Linux x86-64 with Python 3.11, torch 2.13.0, coreai-opt 0.4.0:
#     config of 2 bits, dictionary of 4: 16 different weights
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 torchao==0.18.0 coreai-opt==0.4.0 numpy==2.3.5
export PATH="$folder/env/bin:$PATH" TORCH_EXTENSIONS_DIR="$folder/built"
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
import torch
from coreai_opt.palettization import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
)


def prepared(n_bits: int, **more):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16)).eval()
    spec = {"weight": PalettizationSpec(n_bits=n_bits)}
    module = ModuleKMeansPalettizerConfig(op_state_spec=spec)
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig(global_config=module))
    return palettizer.prepare((torch.ones(1, 16),), **more)


taken = prepared(2, state_dict=prepared(4).state_dict())
count = len(taken[0].weight.unique())
print(f"config of 2 bits, dictionary of 4: {count} different weights")
assert count == 16, "coreai-opt does otherwise now"
PY
