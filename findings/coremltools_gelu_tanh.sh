#!/usr/bin/env bash
# coremltools 9.0: `gelu(approximate="tanh")` of a torch.export program becomes the exact one.
#
# The converter looks for `approximate` among the positional arguments; torch.export has it as a
# keyword. Outputs are off by up to 5e-4.
#
# Seen on Linux x86-64 with Python 3.11, torch 2.13.0, coremltools 9.0, numpy 2.3.5:
#     gelu(x) becomes                     gelu EXACT
#     gelu(x, approximate="tanh") becomes gelu EXACT
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


gelu = torch.nn.functional.gelu
modes = []
for text, function in (
    ("gelu(x) becomes                    ", gelu),
    ('gelu(x, approximate="tanh") becomes', lambda x: gelu(x, approximate="tanh")),
):
    (op,) = operations(function)
    mode = op.inputs.get("mode")
    modes.append("EXACT" if mode is None else str(mode.val))
    print(text, op.op_type, modes[-1])
assert modes[0] == "EXACT"
assert modes[1] == "EXACT", "coremltools does otherwise now"
PY
