"""Programs that exist, made by coreai-torch alone, and palettized without their model."""

from __future__ import annotations

import coreai_support as support
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from coreai_backend.ir import quiet
from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    OpKMeansPalettizerConfig,
    PalettizationSpec,
    QuantizationSpec,
)
from palette_core.cli.app import app
from palette_core.errors import BackendError, PlanError
from palette_core.programs import palettize_program, plan_program

with quiet():
    import coreai_torch

TOKENS = (torch.arange(12).reshape(2, 6),)
ROWS = {"type": "per_grouped_channel", "axis": 0, "group_size": 8}


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.linear = nn.Embedding(40, 16), nn.Linear(16, 32)
        self.conv = nn.Conv1d(32, 24, 3, padding=1)
        self.up = nn.ConvTranspose1d(24, 16, 2, stride=2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.linear(self.embedding(tokens)).relu().transpose(1, 2)
        return self.up(self.conv(x))


def written(path):
    with quiet():
        program = torch.export.export(Mixed().eval(), TOKENS)
        program = program.run_decompositions(coreai_torch.get_decomp_table())
        coreai_torch.TorchConverter().add_exported_program(program).to_coreai().save_asset(path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return written(tmp_path_factory.mktemp("plain") / "plain.aimodel")


def config(spec):
    asked = OpKMeansPalettizerConfig(op_state_spec={"weight": spec})
    return KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec={"weight": spec}, op_type_config={"embedding": asked}
        )
    )


@pytest.mark.parametrize(
    "spec",
    [
        PalettizationSpec(n_bits=4),
        PalettizationSpec(n_bits=3, granularity=ROWS, enable_per_channel_scale=True),
        PalettizationSpec(n_bits=8, lut_qspec=QuantizationSpec()),
    ],
    ids=lambda spec: f"{spec.n_bits} bits",
)
def test_it_computes_what_the_palettized_model_does(spec, plain, tmp_path):
    report = palettize_program(plain, tmp_path / "small.aimodel", config(spec))
    assert len(report.tensors) == 4
    model = Mixed().eval()
    KMeansPalettizer(model, config(spec)).prepare(TOKENS)
    (got,) = support.run_file(tmp_path / "small.aimodel", *TOKENS)
    assert np.allclose(got, model(*TOKENS).detach().numpy(), atol=1e-5)
    (before,) = support.run_file(plain, *TOKENS)
    assert not np.allclose(got, before, atol=1e-5)
    sizes = [(p / "main.mlirb").stat().st_size for p in (tmp_path / "small.aimodel", plain)]
    assert sizes[0] < sizes[1]


def test_the_plan_tells_what_consumes_each_weight(plain):
    plan = plan_program(plain, config(PalettizationSpec()))
    found = {item.op_type: (item.shape, item.axis) for item in plan}
    assert found == {
        "embedding": ((40, 16), 0),
        "linear": ((32, 16), 0),
        "conv2d": ((24, 32, 1, 3), 0),
        "conv_transpose2d": ((24, 16, 2, 1), 1),
    }


def test_a_weight_that_would_not_decode_leaves_nothing(plain, tmp_path, monkeypatch):
    from coreai_backend import programs

    real = programs.emit
    monkeypatch.setattr(
        programs,
        "emit",
        lambda name, w: real(name, w._replace(lut=w.lut + 1)),
    )
    with pytest.raises(BackendError, match="does not decode to its palettized values"):
        palettize_program(plain, tmp_path / "small.aimodel")
    assert list(tmp_path.iterdir()) == []


def test_constants_of_several_shapes_in_the_same_bytes_stay_dense(plain, monkeypatch):
    from coreai_backend import programs

    real = programs._constants

    def doubled(program):
        first, *others = real(program)
        return [first, first._replace(values=first.values[None]), *others]

    monkeypatch.setattr(programs, "_constants", doubled)
    plan = plan_program(plain, config(PalettizationSpec()))
    assert len(plan.tensors) == 3
    (skipped,) = plan.skipped
    assert "constants of other shapes lie in the same bytes" in skipped.reason


def test_sparse_weights_are_refused_while_planning_with_what_would_do(plain, tmp_path):
    sparse = PalettizationSpec(sparsity_detection_threshold=0.5)
    with pytest.raises(PlanError, match=r"sparse weights are not written .*preserve_zero"):
        palettize_program(plain, tmp_path / "small.aimodel", config(sparse))
    model = Mixed().eval()  # of a model, they are
    KMeansPalettizer(model, config(sparse)).prepare(TOKENS, backend="coreai")


def test_what_is_none_of_its_programs_is_refused(plain, tmp_path):
    with pytest.raises(BackendError, match=r"these do: .*coreai \(\.aimodel\)"):
        palettize_program("model.bin", tmp_path / "model.bin")
    with pytest.raises(BackendError, match=r"writes \.aimodel, got"):
        palettize_program(plain, tmp_path / "small.bin")
    with pytest.raises(BackendError, match="cannot be read as an"):
        palettize_program(tmp_path / "missing.aimodel", tmp_path / "small.aimodel")


def test_the_command_takes_a_program_in_the_place_of_a_factory(plain, tmp_path):
    out = tmp_path / "small.aimodel"
    done = CliRunner().invoke(app, ["palettize", str(plain), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert "conv2d" in done.output
    assert "lut_to_dense" in support.summary(out)[1]
    done = CliRunner().invoke(
        app, ["palettize", str(plain), "-o", str(out), "--calibration", "a:b"]
    )
    assert str(done.exception).startswith("--calibration is about a model")
