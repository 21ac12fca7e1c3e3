#!/usr/bin/env bash
# coremltools 9.0: `torch.reciprocal` adds 1e-4 to what it divides by.
#
# It becomes Core ML's `inverse` with its default epsilon of 1e-4: 1/0.001 is 909 instead of 1000.
# `1 / x` written out becomes a division, which is right.
#
# Seen on Linux x86-64 with Python 3.11, torch 2.13.0, coremltools 9.0, numpy 2.3.5:
#     torch.reciprocal(x): inverse, epsilon 0.0001
#     torch.div(one, x): real_div
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 coremltools==9.0 numpy==2.3.5
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
import coremltools as ct
import torch


class Apply(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def operations(function):
    """Operations of the converted program that compute."""
    converted = ct.convert(
        torch.export.export(Apply(function).eval(), (torch.ones(2, 3),)).run_decompositions({}),
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        convert_to="milinternal",
    )
    return [op for op in converted.functions["main"].operations if op.op_type != "const"]


(inverse,) = operations(torch.reciprocal)
division = operations(lambda x: torch.div(torch.ones(3), x))[-1]
epsilon = float(inverse.inputs["epsilon"].val)
print(f"torch.reciprocal(x): {inverse.op_type}, epsilon {epsilon:.4f}")
print(f"torch.div(one, x): {division.op_type}")
assert division.op_type == "real_div"
assert inverse.op_type == "inverse" and abs(epsilon - 1e-4) < 1e-9, "coremltools does otherwise now"
PY
