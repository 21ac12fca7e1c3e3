#!/usr/bin/env bash
# coremltools 9.0: `zeros_like`, `ones_like` and `full_like` ignore `dtype`.
#
# The result keeps the dtype of the tensor that it is like. A float bias made from a boolean mask
# stays boolean, so the -inf written into it becomes True, which then is added as 1.0: what was to
# be hidden is preferred, without a warning. torch.nn.MultiheadAttention makes its mask this way.
#
# Seen on Linux x86-64 with Python 3.11, torch 2.13.0, coremltools 9.0, numpy 2.3.5:
#     torch adds      [[-inf, 0.0, -inf]]
#     Core ML adds    [[1.0, 0.0, 1.0]]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 coremltools==9.0 numpy==2.3.5
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
import coremltools as ct
import numpy as np
import torch

HIDDEN = torch.tensor([[True, False, True]])


class Masked(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = torch.zeros_like(HIDDEN, dtype=torch.float32)
        return x + bias.masked_fill(HIDDEN, float("-inf"))


inputs = (torch.zeros(1, 3),)
model = Masked().eval()
program = torch.export.export(model, inputs).run_decompositions({})
converted = ct.convert(
    program,
    minimum_deployment_target=ct.target.iOS18,
    compute_precision=ct.precision.FLOAT32,
    convert_to="milinternal",
)
(add,) = converted.functions["main"].find_ops(op_type="add")
print("torch adds     ", model(*inputs).tolist())
print("Core ML adds   ", add.y.val.tolist())
assert np.array_equal(model(*inputs), [[-np.inf, 0, -np.inf]])
assert np.array_equal(add.y.val, [[1, 0, 1]]), "coremltools does otherwise now"
PY
