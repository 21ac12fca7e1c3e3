#!/usr/bin/env bash
# coremltools 9.0: a part of a concatenation that is a constant cannot be taken.
#
# Floats are joined, some of them from a buffer, and the part that holds those is cut out again, by a
# slice or by split. The conversion fails: coremltools knows the values of the part and takes them
# for int32. With one element of the input in the part, or a product in between, it converts.
#
# Seen on Linux x86-64 with Python 3.11, torch 2.13.0, coremltools 9.0, numpy 2.3.5:
#     cut where it was joined        ValueError
#     split where it was joined      ValueError
#     cut before                     converted
#     split after a product          converted
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 coremltools==9.0 numpy==2.3.5
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
import coremltools as ct
import torch


class Joined(torch.nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part
        self.register_buffer("known", torch.tensor([[0.0, 0.5, 1.0, 2.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(torch.cat([x, self.known], 1)) * x


def outcome(part) -> str:
    program = torch.export.export(Joined(part).eval(), (torch.ones(1, 4),)).run_decompositions({})
    try:
        ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
    except Exception as error:
        return type(error).__name__
    return "converted"


found = {
    "cut where it was joined": outcome(lambda x: x[:, 4:]),
    "split where it was joined": outcome(lambda x: x.split(4, 1)[1]),
    "cut before": outcome(lambda x: x[:, 3:7]),
    "split after a product": outcome(lambda x: (x * 3).split(4, 1)[1]),
}
for name, how in found.items():
    print(f"{name:30} {how}")
expected = ["ValueError", "ValueError", "converted", "converted"]
assert list(found.values()) == expected, "coremltools does otherwise now"
PY
