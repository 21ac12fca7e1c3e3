#!/usr/bin/env bash
# coremltools 9.0: a choice between numbers by a condition of dynamic shape is declared a number.
#
# torch.where(condition, 0.0, -inf) has the shape of its condition. Where that is dynamic, the result
# of select is declared without dimensions in the package, as type inference does not look at the
# condition; what follows is inferred from that. An attention mask of a dynamic number of tokens is
# written so. With values that have the shape of the condition, it is declared well.
#
# Seen on Linux x86-64 with Python 3.11, torch 2.13.0, coremltools 9.0, numpy 2.3.5:
#     numbers, dynamic        0 dimensions
#     spread, dynamic         2 dimensions
#     numbers, static         2 dimensions
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 coremltools==9.0 numpy==2.3.5
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
import coremltools as ct
import torch


class Mask(torch.nn.Module):
    def __init__(self, spread: bool):
        super().__init__()
        self.spread = spread

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = x[:, None] >= x
        yes, no = torch.tensor(0.0), torch.tensor(-1.0)
        if self.spread:
            yes, no = yes - seen.float() * 0, no - seen.float() * 0
        return torch.where(seen, yes, no) * 2


def dimensions(spread: bool, dynamic: bool) -> int:
    shapes = ({0: torch.export.Dim("n", min=2, max=8)},) if dynamic else None
    program = torch.export.export(Mask(spread), (torch.arange(4.0),), dynamic_shapes=shapes)
    package = ct.convert(
        program.run_decompositions({}),
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    )
    (function,) = package.get_spec().mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    (choice,) = [op for op in block.operations if op.type == "select"]
    return choice.outputs[0].type.tensorType.rank


found = {
    "numbers, dynamic": dimensions(False, True),
    "spread, dynamic": dimensions(True, True),
    "numbers, static": dimensions(False, False),
}
for name, rank in found.items():
    print(f"{name:23} {rank} dimensions")
assert list(found.values()) == [0, 2, 2], "coremltools does otherwise now"
PY
