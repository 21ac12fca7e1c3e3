#!/usr/bin/env bash
# coreai-torch 0.4.3: NaN is at least, and at most, everything.
#
# `x >= y` is lowered to the negation of `y > x`, and `x <= y` to that of `x > y`; both are true where
# one is NaN, and false in torch. `>`, `<` and `==` are right.
#
# Seen on Linux x86-64 with Python 3.11, torch 2.13.0, coreai-torch 0.4.3, coreai-core 1.0.0b3:
#     NaN > 0: False
#     NaN >= 0: True
#     NaN <= 0: True
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


x = torch.tensor([float("nan")])
larger, at_least, at_most = (
    bool(run(function, x)[0]) for function in (lambda x: x > 0, lambda x: x >= 0, lambda x: x <= 0)
)
print(f"NaN > 0: {larger}")
print(f"NaN >= 0: {at_least}")
print(f"NaN <= 0: {at_most}")
assert not larger
assert at_least and at_most, "coreai-torch does otherwise now"
PY
