#!/usr/bin/env bash
# OpenVINO 2026.4.1: of one ONNX file, `Core.read_model` keeps 4-bit indices and
# `openvino.convert_model` unpacks them into dense float32 weights.
#
# The file holds a look-up table and UINT4 indices (opset 21): Cast, Gather, MatMul. Both ways in
# compute the same, but what is saved after `convert_model` is eight times as large, because the
# look-up is folded into a constant. Neither says so.
#
# Seen on Linux x86-64 with Python 3.11, openvino 2026.4.1, onnx 1.23.2, numpy 2.3.5:
#     read_model       2120 bytes, constants i64, u4, f32
#     convert_model   16384 bytes, constants f32
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet openvino==2026.4.1 onnx==1.23.2 numpy==2.3.5
cd "$folder"
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, helper

SIZE = 64
codes = np.arange(SIZE * SIZE) % 16
table = np.linspace(-1, 1, 16, dtype=np.float32)
packed = (codes[0::2] | codes[1::2] << 4).astype(np.uint8).tobytes()
graph = helper.make_graph(
    [
        helper.make_node("Cast", ["codes"], ["indices"], to=TensorProto.INT32),
        helper.make_node("Gather", ["table", "indices"], ["weight"]),
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
    ],
    "model",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, SIZE])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, SIZE])],
    [
        helper.make_tensor("codes", TensorProto.UINT4, [SIZE, SIZE], packed, raw=True),
        helper.make_tensor("table", TensorProto.FLOAT, [16], table),
    ],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, "model.onnx")

core = ov.Core()
x = np.random.default_rng(0).normal(size=(1, SIZE)).astype(np.float32)
bytes_of = {}
for name, read in {"read_model": core.read_model, "convert_model": ov.convert_model}.items():
    found = read("model.onnx")
    ov.save_model(found, f"{name}.xml", compress_to_fp16=False)
    bytes_of[name] = Path(f"{name}.bin").stat().st_size
    constants = [op for op in found.get_ops() if op.get_type_name() == "Constant"]
    types = ", ".join(op.get_output_element_type(0).to_string() for op in constants)
    print(f"{name:<13} {bytes_of[name]:>7} bytes, constants {types}")
    compiled = core.compile_model(found, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert np.allclose(compiled([x])[0], x @ table[codes].reshape(SIZE, SIZE), atol=1e-5)
assert bytes_of["read_model"] < 1.1 * (SIZE * SIZE // 2 + 16 * 4)
assert bytes_of["convert_model"] == SIZE * SIZE * 4, "OpenVINO does otherwise now"
PY
