#!/usr/bin/env bash
# safetensors 0.8.0: files with several entries of metadata are not reproducible.
#
# Tensors are written in an order that depends on nothing but their names and dtypes, so that equal
# content gives equal bytes. Entries of `metadata` come in another order in every process (and from
# call to call), so that with two of them equal content gives different bytes, and hashes of files
# differ. One would expect them in the order given, or sorted. One entry is the way out.
#
# Seen on Linux x86-64 with Python 3.11, safetensors 0.8.0, numpy 2.3.5:
#     one entry       1 file among 40
#     eight entries   many files among 40
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet safetensors==0.8.0 numpy==2.3.5
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
import numpy as np
from safetensors.numpy import save

TENSORS = {"w": np.ones(3, np.float32)}


def files(entries: int) -> int:
    metadata = {f"key{number}": "value" for number in range(entries)}
    return len({save(TENSORS, metadata) for _ in range(40)})


one, eight = files(1), files(8)
print("one entry      ", one, "file among 40")
print("eight entries  ", "many" if eight > 1 else "one", "files among 40")
assert one == 1
assert eight > 1, "safetensors keeps an order now"
PY
