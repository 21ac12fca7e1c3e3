#!/usr/bin/env bash
# coreai-opt 0.4.0: the default fast mode rounds to four decimal places, whatever the weights' size.
#
# `enable_fast_kmeans_mode` (True) clusters weights rounded to 1e-4. Weights of a standard deviation of
# 1e-4, such as those after a scale, then have a handful of values, and 256 entries do no better than a
# few. Turning it off gives what 8 bits can. One would expect rounding relative to the weights.
#
# Seen on Linux x86-64 with Python 3.11, torch 2.13.0, coreai-opt 0.4.0:
#     deviation 1e-02: fast mode has the squared error of 8 bits
#     deviation 1e-04: fast mode has more than 1000 times that
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


def error(deviation: float, fast: bool) -> float:
    layer = torch.nn.Linear(64, 128, bias=False)
    generator = torch.Generator().manual_seed(0)
    weight = deviation * torch.randn(128, 64, generator=generator)
    layer.weight = torch.nn.Parameter(weight.clone())
    model = torch.nn.Sequential(layer)
    module = ModuleKMeansPalettizerConfig(
        op_state_spec={"weight": PalettizationSpec(n_bits=8)}, enable_fast_kmeans_mode=fast
    )
    config = KMeansPalettizerConfig(global_config=module)
    KMeansPalettizer(model, config).prepare((torch.ones(1, 64),))
    return float((model[0].weight.double() - weight.double()).square().sum())


large, small = (error(d, True) / error(d, False) for d in (1e-2, 1e-4))
print(f"deviation 1e-02: fast mode has {'' if large < 100 else 'not '}the squared error of 8 bits")
print(f"deviation 1e-04: fast mode has {'more' if small > 1000 else 'less'} than 1000 times that")
assert large < 100
assert small > 1000, "coreai-opt does otherwise now"
PY
