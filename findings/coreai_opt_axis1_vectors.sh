#!/usr/bin/env bash
# coreai-opt 0.4.0: convolutions with vectors and groups on axis 1 finalize to other weights.
#
# With kernels larger than 1, `cluster_dim` 2 and groups of input channels, vectors are formed within
# kernels, and finalizing for Core AI lays them out along output channels: the finalized model computes
# something else than the prepared one. With kernels of 1 both agree. One would expect them to agree.
#
# Seen on Linux x86-64 with Python 3.11, torch 2.13.0, coreai-opt 0.4.0, coreai-torch 0.4.3:
#     kernel 1: finalized agrees with prepared
#     kernel 3: finalized differs from prepared, by more than the signal
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
from coreai_opt.palettization.spec import PerGroupedChannelGranularity

SPEC = PalettizationSpec(
    n_bits=4, cluster_dim=2, granularity=PerGroupedChannelGranularity(axis=1, group_size=4)
)
MODULE = ModuleKMeansPalettizerConfig(
    op_state_spec={"weight": SPEC}, enable_fast_kmeans_mode=False
)


def ratio(kernel: int) -> float:
    """Return squared difference of finalized and prepared outputs, over the prepared ones'."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(16, 16, kernel)).eval()
    inputs = torch.randn(1, 16, 8, 8)
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig(global_config=MODULE))
    prepared = palettizer.prepare((inputs,))(inputs).detach()
    gap = palettizer.finalize()(inputs) - prepared
    return float(gap.square().sum() / prepared.square().sum())


one, three = ratio(1), ratio(3)
print(f"kernel 1: finalized {'agrees with' if one < 1e-9 else 'differs from'} prepared")
print(f"kernel 3: finalized {'agrees with' if three < 1e-9 else 'differs from'} prepared", end="")
print(", by more than the signal" if three > 1 else "")
assert one < 1e-9
assert three > 1, "coreai-opt does otherwise now"
PY
