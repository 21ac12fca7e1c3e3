#!/usr/bin/env bash
# torch 2.13.0: `torch.load` does not look at the checksums that `torch.save` writes.
#
# A file of torch.save is a zip archive with a CRC-32 of every part, which `unzip -t` and Python's
# zipfile check. torch.load does not: after some bits of a tensor have flipped, it returns other values
# without a word, with and without weights_only and mmap. One would expect the error that any zip
# reader raises.
#
# Seen on Linux x86-64 with Python 3.11, torch 2.13.0, numpy 2.3.5:
#     zipfile says    s/data/0 is damaged
#     torch.load      [2.0, 1.0, 1.0, 1.0]
#     weights, mmap   [2.0, 1.0, 1.0, 1.0]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5
cd "$folder"
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
import zipfile
from pathlib import Path

import numpy as np
import torch

ONES = torch.ones(4)
path = Path("s.pt")
torch.save({"w": ONES}, path)
data = bytearray(path.read_bytes())
at = data.index(ONES.numpy().tobytes())
data[at : at + 4] = np.float32(2.0).tobytes()
path.write_bytes(data)

damaged = zipfile.ZipFile(path).testzip()
plain = torch.load(path, weights_only=False)["w"].tolist()
mapped = torch.load(path, weights_only=True, mmap=True)["w"].tolist()
print("zipfile says   ", damaged, "is damaged")
print("torch.load     ", plain)
print("weights, mmap  ", mapped)
assert damaged is not None and damaged.endswith("data/0")
assert plain == mapped == [2.0, 1.0, 1.0, 1.0], "torch looks at checksums now"
PY
