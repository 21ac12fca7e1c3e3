#!/usr/bin/env bash
# coreai-core 1.0.0b3: vectors of a sparse look-up are not laid out as documented.
#
# `lut_to_sparse_with_bitmask` documents, for entries of two values and axis 0, that the values of
# an entry fill two rows: an index at (i, j) gives elements (2i, j) and (2i + 1, j). The runtime puts
# the values of all entries one after the other, row by row, where the mask has ones. `lut_to_dense`,
# of the same indices and table, does as documented. Scalars are right.
#
# Seen on Linux x86-64 with Python 3.11, torch 2.13.0, coreai-torch 0.4.3, coreai-core 1.0.0b3:
#     dense:               [[2, 4, 2], [3, 5, 3], [4, 2, 2], [5, 3, 3]]
#     documented, masked:  [[2, 4, 0], [3, 5, 0], [4, 0, 2], [5, 0, 3]]
#     sparse:              [[2, 3, 0], [4, 5, 0], [4, 0, 5], [2, 0, 3]]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 coreai-torch==0.4.3 coreai-core==1.0.0b3 numpy==2.3.5
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
import asyncio
import tempfile
from pathlib import Path

import numpy as np
import torch
from coreai.authoring import AIModelAsset
from coreai.runtime import NDArray
from coreai._compiler import ir
from coreai._compiler.dialects import coreai as dialect
from coreai_torch import TorchConverter, get_decomp_table

LUT = np.array([2, 3, 4, 5], np.float32).reshape(1, 1, 2, 2)  # two entries of two values
MASK = np.array([[1, 1, 0], [1, 0, 1]], np.uint8)
INDICES = np.array([[0, 1, 0], [1, 0, 0]], np.uint8)

library = torch.library.Library("demo", "DEF")
library.define("weight(Tensor x) -> Tensor")
library.impl("weight", lambda x: x.new_zeros(4, 3), "CompositeExplicitAutograd")

class Apply(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.ops.demo.weight(x)

def run(lower):
    """Multiply the identity by what `lower` emits, in Core AI's runtime."""
    x, converter = torch.eye(4), TorchConverter()
    converter.register_torch_lowering("demo::weight.default")(lambda values, node, loc: lower())
    program = torch.export.export(Apply(), (x,)).run_decompositions(get_decomp_table())
    path = Path(tempfile.mkdtemp()) / "m.aimodel"
    converter.add_exported_program(program).to_coreai().save_asset(path)

    async def go():
        async with AIModelAsset.load(path).executable() as loaded:
            main = loaded.load_function("main")
            outputs = await main(inputs={main.desc.input_names[0]: NDArray(x.numpy())})
            return np.array(next(iter(outputs.values())).numpy()).astype(int)

    return asyncio.run(go())
def bits(values):
    kind = ir.RankedTensorType.get(list(values.shape), ir.IntegerType.get_unsigned(1))
    packed = np.packbits(values.reshape(-1), bitorder="little")
    named = ir.DenseResourceElementsAttr.get_from_buffer(packed, f"bits{values.size}", kind)
    return dialect.ConstantOp(value=named).result

def arguments():
    return dialect.constant(LUT), dialect.constant(np.array(0, np.int16))

def sparse():
    indices = dialect.build_sparse_with_bitmask(bits(INDICES[MASK > 0]), bits(MASK))
    found = dialect.lut_to_sparse_with_bitmask(indices, *arguments())
    return dialect.sparse_with_bitmask_to_dense(found)

dense, looked_up = run(lambda: dialect.lut_to_dense(bits(INDICES), *arguments())), run(sparse)
masked = dense * MASK.repeat(2, axis=0)
print(f"dense:               {dense.tolist()}")
print(f"documented, masked:  {masked.tolist()}")
print(f"sparse:              {looked_up.tolist()}")
in_a_row = LUT.reshape(2, 2)[INDICES[MASK > 0]].reshape(-1)
assert (looked_up[masked > 0] == in_a_row).all(), "coreai does otherwise now"
assert (looked_up != masked).any(), "coreai does otherwise now"
PY
