"""The contract, and what onnxruntime makes of the files, beside torch."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx_reading import read_weights, run
from torch import nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    OpKMeansPalettizerConfig,
    PalettizationSpec,
)
from palette_core.errors import BackendError, PaletteError
from palette_core.testing import parametrize_contract

IDS = (torch.arange(12).reshape(3, 4),)


@parametrize_contract("palette-onnx", readers={"onnx": read_weights})
def test_contract(check):
    check()


class Net(nn.Module):
    """A tied embedding, and a layer of every usual kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(32, 16)
        self.conv = nn.Conv1d(16, 16, 3, padding=1)
        self.linear = nn.Linear(16, 16)
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.embed(ids).mT).relu().mT
        return self.head(self.linear(x))


def palettizer_of(dtype=torch.float32, net=None, **spec):
    every = PalettizationSpec.model_validate(spec)
    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec={"weight": every},
            op_type_config={"embedding": OpKMeansPalettizerConfig(op_state_spec={"*": every})},
            enable_fast_kmeans_mode=False,
        )
    )
    palettizer = KMeansPalettizer((net or Net()).to(dtype).eval(), config)
    palettizer.prepare(IDS, backend="onnx" if net is not None else None)
    return palettizer


ROWS = {"type": "per_grouped_channel", "axis": 0, "group_size": 4}


@pytest.mark.parametrize(
    "spec",
    [
        {"n_bits": 1, "granularity": ROWS, "lut_qspec": {"dtype": "int8"}},
        {"n_bits": 2, "cluster_dim": 2},
        {"n_bits": 3, "granularity": ROWS},
        {"n_bits": 4, "granularity": {**ROWS, "axis": 1}, "enable_per_channel_scale": True},
        {"n_bits": 6, "cluster_dim": 2},
    ],
    ids=["1-bit-int8", "2-bit-vectors", "3-bit-rows", "4-bit-columns-scaled", "6-bit-vectors"],
)
def test_onnxruntime_gives_what_torch_gives(tmp_path, spec):
    palettizer = palettizer_of(**spec)
    model = palettizer.finalize(backend="onnx")
    path = palettizer.export(tmp_path / "net.onnx", IDS, backend="onnx")
    with torch.no_grad():
        np.testing.assert_allclose(run(path, *IDS), model(*IDS).numpy(), rtol=0, atol=1e-5)
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    stored = {i.name: i for i in file.graph.initializer if i.name.endswith(".indices")}
    assert len(stored) == 3  # a tied weight is stored once
    bits = next(width for width in (2, 4, 8) if spec["n_bits"] <= width)
    kind = {2: onnx.TensorProto.UINT2, 4: onnx.TensorProto.UINT4, 8: onnx.TensorProto.UINT8}[bits]
    assert {i.data_type for i in stored.values()} == {kind}
    for held in stored.values():
        assert len(held.raw_data) == -(-np.prod(held.dims) * bits // 8)
    opset = {entry.domain: entry.version for entry in file.opset_import}[""]
    assert (opset, file.ir_version) == ((25, 13) if bits == 2 else (21, 10))
    # Nothing of the size of a weight is stored in a wider type; biases and tables are smaller.
    wide = [i for i in file.graph.initializer if np.prod(i.dims) > 128 and i.name not in stored]
    assert not wide


COLUMNS = {**ROWS, "axis": 1}


@pytest.mark.parametrize(
    "spec",
    [
        {"n_bits": 1},
        {"n_bits": 3, "granularity": ROWS, "lut_qspec": {"dtype": "int8"}},
        {"n_bits": 4, "granularity": COLUMNS, "enable_per_channel_scale": True},
        {"n_bits": 2, "cluster_dim": 2},
        {"n_bits": 6, "cluster_dim": 4, "granularity": COLUMNS, "scale_block_size": 4},
    ],
    ids=["1-bit", "3-bit-rows-int8", "4-bit-columns-scaled", "pairs", "fours-columns-blocks"],
)
@pytest.mark.filterwarnings("ignore:conv.weight .* stays dense")
def test_sparse_weights_are_exact_and_store_their_nonzeros_alone(tmp_path, spec):
    net = Net().eval()
    with torch.no_grad():
        for weight in (net.embed.weight, net.conv.weight, net.linear.weight):
            weight[torch.rand(weight.shape) < 0.6] = 0.0
            weight[4:8] = 0.0
    before = {f"{name}.weight": part.weight.detach().clone() for name, part in net.named_children()}
    palettizer = palettizer_of(
        net=net, sparsity_detection_threshold=0.3, stored_form="sparse", **spec
    )
    model = palettizer.finalize(backend="onnx")
    path = palettizer.export(tmp_path / "net.onnx", IDS, backend="onnx")
    with torch.no_grad():
        np.testing.assert_allclose(run(path, *IDS), model(*IDS).numpy(), rtol=0, atol=1e-5)
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    read = read_weights(path)
    assert len(read) == (2 if "scale_block_size" in spec else 3)  # kernels have no blocks of four
    stored = {held.name: held for held in file.graph.initializer}
    for name, weight in read.items():
        assert np.array_equal(weight == 0, before[name].numpy() == 0)
        assert np.array_equal(weight, model.get_submodule(name.rpartition(".")[0]).weight.numpy())
        (listed,) = (n for n in stored if n.startswith(name[:5]) and n.endswith(".indices"))
        mask = stored[listed.removesuffix("indices") + "mask"]
        assert len(mask.raw_data) == -(-weight.size // 8)
        most = -(-np.count_nonzero(weight) // spec.get("cluster_dim", 1)) + 8
        assert np.prod(stored[listed].dims) <= most


SCALED = {"n_bits": 4, "granularity": ROWS, "lut_qspec": {"dtype": "uint8"}}


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float8_e4m3fn"])
def test_8_bit_tables_are_folded_when_a_session_is_made(tmp_path, dtype):
    spec = {**SCALED, "lut_qspec": {"dtype": dtype}}
    path = palettizer_of(**spec).export(tmp_path / "net.onnx", IDS, backend="onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    left = {node.op_type for node in onnx.load(tmp_path / "folded.onnx").graph.node}
    assert not left & {"Cast", "DequantizeLinear"}
    options.optimized_model_filepath = str(tmp_path / "packed.onnx")
    onnxruntime.InferenceSession(
        path, options, ["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
    )
    left = {node.op_type for node in onnx.load(tmp_path / "packed.onnx").graph.node}
    assert left >= {"Cast", "Gather"}


def test_no_path_of_this_machine_is_in_the_file(tmp_path):
    path = palettizer_of(n_bits=4).export(tmp_path / "net.onnx", IDS, backend="onnx")
    assert b".py" not in path.read_bytes()


def test_what_is_not_done_is_refused(tmp_path):
    with pytest.raises(PaletteError, match="onnxruntime has no bfloat16"):
        palettizer_of(torch.bfloat16, n_bits=4).finalize(backend="onnx")
    palettizer = palettizer_of(n_bits=4)
    model = palettizer.finalize(backend="onnx")
    for inputs, text in ((None, "needs example_inputs"), ((torch.ones(3),), "cannot convert")):
        with pytest.raises(BackendError, match=text):
            palettizer.export(tmp_path / "net.onnx", inputs, backend="onnx")
    model.bfloat16()
    with pytest.raises(BackendError, match=r"embed\.weight is bfloat16"):
        palettizer.export(tmp_path / "net.onnx", IDS, backend="onnx")
    assert not list(tmp_path.iterdir())
