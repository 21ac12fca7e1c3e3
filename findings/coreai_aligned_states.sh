#!/usr/bin/env bash
# coreai-core 1.0.0b3: a state with an alignment is read before anything is written to it.
#
# `AIProgram.set_hardware_constraints` with alignments [1, 64] for a state of 8 floats gives a file that
# loads and runs in the runtime on Linux, without a word; what the function reads is not the state that
# the call hands in. With alignments [1, 1], or without constraints, it is, as it is for inputs and
# outputs that are aligned.
#
# Seen on Linux x86-64 with Python 3.11, torch 2.13.0, coreai-torch 0.4.3, coreai-core 1.0.0b3:
#     alignments [1, 1]: right in 20 of 20 calls
#     alignments [1, 64]: wrong in some of 20 calls: True
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
import numpy as np
import torch
from coreai.authoring import AIModelAsset
from coreai.authoring.constraints import AllocationType, HardwareConstraints
from coreai.runtime import NDArray


class Summing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("kv", torch.zeros(8))

    def forward(self, x):
        self.kv.copy_(self.kv + x.sum(0))
        return x + self.kv


def right(alignments):
    """Return how many of 20 calls add 4 to a state of twos, and hand it out."""
    program = torch.export.export(Summing().eval(), (torch.ones(4, 8),)).run_decompositions()
    converter = coreai_torch.TorchConverter().add_exported_program(
        program, input_names=["x"], output_names=["y"], state_names=["kv"]
    )
    made = converter.to_coreai()
    layout = HardwareConstraints(AllocationType.MTLBuffer, alignments, (1,))
    made.set_hardware_constraints("main", {"kv": layout})
    path = Path(tempfile.mkdtemp()) / "m.aimodel"
    made.save_asset(path)

    async def go():
        count = 0
        async with AIModelAsset.load(path).executable() as loaded:
            main = loaded.load_function("main")
            for _ in range(20):
                state = NDArray(np.full(8, 2, np.float32))
                inputs = {"x": NDArray(np.ones((4, 8), np.float32))}
                out = (await main(inputs=inputs, state={"kv": state}))["y"].numpy()
                count += bool((out == 7).all() and (state.numpy() == 6).all())
        return count

    return asyncio.run(go())


plain, aligned = right((1, 1)), right((1, 64))
print(f"alignments [1, 1]: right in {plain} of 20 calls")
print(f"alignments [1, 64]: wrong in some of 20 calls: {aligned < 20}")
assert plain == 20
assert aligned < 20, "the runtime does otherwise now"
PY
