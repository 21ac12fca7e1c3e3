#!/usr/bin/env bash
# coreai-torch 0.4.3: numbers made tensors are rounded to float16.
#
# `torch.scalar_tensor(0.3)` in float32 becomes a float16 constant that is cast: the converter takes
# the float16 form where all tensors that a node reads are float16, and this one reads none.
# `torch.full((), 0.3)` keeps its digits.
#
# Seen on Linux x86-64 with Python 3.11, torch 2.13.0, coreai-torch 0.4.3, coreai-core 1.0.0b3:
#     x * torch.scalar_tensor(0.3): 0.300049
#     x * torch.full((), 0.3):      0.300000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 coreai-torch==0.4.3 coreai-core==1.0.0b3 numpy==2.3.5
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
import asyncio
import tempfile
from pathlib import Path

import coreai_torch
import torch
from coreai.authoring import AIModelAsset
from coreai.runtime import NDArray


class Apply(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def run(function, x):
    """Convert a function, run it in Core AI's runtime, return its output."""
    program = torch.export.export(Apply(function).eval(), (x,))
    program = program.run_decompositions(coreai_torch.get_decomp_table())
    path = Path(tempfile.mkdtemp()) / "m.aimodel"
    coreai_torch.TorchConverter().add_exported_program(program).to_coreai().save_asset(path)

    async def go():
        async with AIModelAsset.load(path).executable() as loaded:
            main = loaded.load_function("main")
            outputs = await main(inputs={main.desc.input_names[0]: NDArray(x.numpy())})
            return next(iter(outputs.values())).numpy().tolist()

    return asyncio.run(go())


x = torch.ones(1)
(rounded,) = run(lambda x: x * torch.scalar_tensor(0.3), x)
(kept,) = run(lambda x: x * torch.full((), 0.3), x)
print(f"x * torch.scalar_tensor(0.3): {rounded:.6f}")
print(f"x * torch.full((), 0.3):      {kept:.6f}")
assert abs(kept - 0.3) < 1e-7
assert abs(rounded - 0.3) > 4e-5, "coreai-torch does otherwise now"
PY
