#!/usr/bin/env bash
# coremltools 9.0: `torch.add` and `torch.sub` lose `alpha`.
#
# torch computes `a + alpha * b`; the converted program has a plain `add` of the two inputs and no
# multiplication, without a warning. `a + alpha * b` written out is converted as it should be.
#
# Seen on Linux x86-64 with Python 3.11, torch 2.13.0, coremltools 9.0, numpy 2.3.5:
#     torch.add(a, b, alpha=3) becomes    ['add']
#     torch.sub(a, b, alpha=3) becomes    ['sub']
#     a + 3 * b becomes                   ['mul', 'add']
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

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.function(a, b)


def operations(function) -> list[str]:
    """Operations of the converted program that compute."""
    inputs = (torch.ones(2, 3), torch.ones(2, 3))
    converted = ct.convert(
        torch.export.export(Apply(function).eval(), inputs).run_decompositions({}),
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        convert_to="milinternal",
    )
    found = [operation.op_type for operation in converted.functions["main"].operations]
    return [name for name in found if name != "const"]


added = operations(lambda a, b: torch.add(a, b, alpha=3))
subtracted = operations(lambda a, b: torch.sub(a, b, alpha=3))
written_out = operations(lambda a, b: a + 3 * b)
print("torch.add(a, b, alpha=3) becomes   ", added)
print("torch.sub(a, b, alpha=3) becomes   ", subtracted)
print("a + 3 * b becomes                  ", written_out)
assert written_out == ["mul", "add"]
assert (added, subtracted) == (["add"], ["sub"]), "coremltools does otherwise now"
PY
