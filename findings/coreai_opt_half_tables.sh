#!/usr/bin/env bash
# coreai-opt 0.4.0: half-precision models with quantized tables do not run once they are finalized.
#
# `finalize()` for Core AI makes weights that decode to float32 where tables are quantized, whatever the
# model's dtype, so the finalized torch model fails at its first product. The prepared model runs.
#
# Seen on Linux x86-64 with Python 3.11, torch 2.13.0, coreai-opt 0.4.0, coreai-torch 0.4.3:
#     float32: prepared runs, finalized runs
#     float16: prepared runs, finalized fails: self and mat2 must have the same dtype
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 torchao==0.18.0 coreai-opt==0.4.0 numpy==2.3.5 coreai-torch==0.4.3 coreai-core==1.0.0b3 scikit-learn==1.9.1
export PATH="$folder/env/bin:$PATH" TORCH_EXTENSIONS_DIR="$folder/built"
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
import torch
from coreai_opt.palettization import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
)
from coreai_opt.quantization import QuantizationSpec

SPEC = PalettizationSpec(lut_qspec=QuantizationSpec(dtype=torch.int8, qscheme="symmetric"))
MODULE = ModuleKMeansPalettizerConfig(op_state_spec={"weight": SPEC})


def outcome(dtype: torch.dtype) -> str:
    """Return how the finalized model runs; raises where the prepared one does not."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16)).to(dtype).eval()
    inputs = torch.ones(1, 16, dtype=dtype)
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig(global_config=MODULE))
    palettizer.prepare((inputs,))(inputs)
    finalized = palettizer.finalize()
    try:
        finalized(inputs)
    except RuntimeError as error:
        return f"fails: {str(error).split(',')[0]}"
    return "runs"


found = {dtype: outcome(dtype) for dtype in (torch.float32, torch.float16)}
for dtype, text in found.items():
    print(f"{str(dtype).removeprefix('torch.')}: prepared runs, finalized {text}")
assert found[torch.float32] == "runs"
assert "same dtype" in found[torch.float16], "coreai-opt does otherwise now"
PY
