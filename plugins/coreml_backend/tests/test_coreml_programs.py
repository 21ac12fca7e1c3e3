"""Packages that exist, made by coremltools alone, and palettized without their model."""

from __future__ import annotations

import shutil

import coremltools as ct
import numpy as np
import pytest
import torch
from coreml_cases import INT8
from coremltools.converters.mil import Builder as mb
from mil_evaluator import run_package
from torch import Tensor, nn

from coreml_backend import programs
from coreml_backend.reading import open_package, program_of, read_weights
from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
)
from palette_core.errors import BackendError, PlanError
from palette_core.programs import palettize_program, plan_program

X = (torch.linspace(-1, 1, 32).reshape(2, 16),)
ROWS = {"type": "per_grouped_channel", "axis": 0, "group_size": 8}


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.conv = nn.Linear(16, 64), nn.Conv1d(8, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.linear(x).relu().reshape(2, 8, 8))


@pytest.fixture(scope="module", params=["float32", "float16"])
def plain(request, tmp_path_factory):
    program = torch.export.export(Mixed().eval(), X).run_decompositions({})
    precision = {"float32": ct.precision.FLOAT32, "float16": ct.precision.FLOAT16}
    model = ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=precision[request.param],
    )
    path = tmp_path_factory.mktemp("plain") / f"{request.param}.mlpackage"
    model.save(str(path))
    return path


def config(spec):
    module = ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec})
    return KMeansPalettizerConfig(global_config=module)


def palettized_model(spec, dtype):
    """Return the torch model, its weights rounded as the package stores them, palettized."""
    model = Mixed().eval().to(dtype)
    KMeansPalettizer(model, config(spec)).prepare((X[0].to(dtype),))
    return model


@pytest.mark.parametrize(
    "spec",
    [
        PalettizationSpec(n_bits=4),
        PalettizationSpec(n_bits=3, granularity=ROWS),
        PalettizationSpec(n_bits=8, lut_qspec=INT8),
    ],
    ids=lambda spec: f"{spec.n_bits} bits",
)
def test_weights_are_those_of_the_palettized_model(spec, plain, tmp_path):
    out = tmp_path / "small.mlpackage"
    if plain.stem == "float16" and spec.lut_qspec is not None:
        with pytest.raises(PlanError, match="keep the tables floats"):
            plan_program(plain, config(spec))
        return
    report = palettize_program(plain, out, config(spec))
    assert len(report.tensors) == 2
    dtype = getattr(torch, plain.stem)
    model = palettized_model(spec, dtype)
    wanted = {w.shape: w.detach().numpy() for w in (model.linear.weight, model.conv.weight)}
    for name, weight in read_weights(out).items():
        assert np.array_equal(weight, wanted[torch.Size(weight.shape)]), name
    if plain.stem == "float32":
        (got,) = run_package(out, [X[0].numpy()]).values()
        assert np.allclose(got, model(*X).detach().numpy(), atol=1e-5)


def test_the_plan_tells_what_consumes_each_weight(plain):
    found = {item.op_type: (item.shape, item.axis) for item in plan_program(plain)}
    assert found == {"linear": ((64, 16), 0), "conv1d": ((24, 8, 3), 0)}


def test_what_a_target_cannot_store_is_refused_before_anything_is_clustered(plain, tmp_path):
    spec = PalettizationSpec(n_bits=3)
    with pytest.raises(PlanError, match="3 bits: iOS17 cannot store it"):
        palettize_program(
            plain, tmp_path / "s.mlpackage", config(spec),
            backend_options={"deployment_target": "iOS17"},
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_target_before_the_programs_own_is_refused(plain, tmp_path):
    out = tmp_path / "small.mlpackage"
    palettize_program(plain, out, backend_options={"deployment_target": "iOS26"})
    with pytest.raises(BackendError, match="of iOS26, which iOS18 does not load"):
        plan_program(out, backend_options={"deployment_target": "iOS18"})
    with pytest.raises(PlanError, match="no weight is to be palettized"):
        palettize_program(out, tmp_path / "again.mlpackage")  # no target asked for


def test_a_package_whose_weights_are_cut_is_named(plain, tmp_path):
    cut = tmp_path / "cut.mlpackage"
    shutil.copytree(plain, cut)
    (weights,) = cut.rglob("weight.bin")
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(BackendError, match=r"cut\.mlpackage: the package is damaged"):
        plan_program(cut)


def test_a_weight_that_would_not_decode_leaves_nothing(plain, tmp_path, monkeypatch):
    real = programs.emit

    def wrong(tensor, name, **how):
        return real(type(tensor)(**{**vars(tensor), "lut": tensor.lut + 1}), name, **how)

    monkeypatch.setattr(programs, "emit", wrong)
    with pytest.raises(BackendError, match="does not decode to its palettized values"):
        palettize_program(plain, tmp_path / "s.mlpackage")
    assert list(tmp_path.iterdir()) == []


def test_a_program_in_which_nothing_is_palettized_is_not_written(plain, tmp_path):
    nothing = KMeansPalettizerConfig(module_name_configs={"missing": config(None).global_config},
                                     global_config=None)  # fmt: skip
    with pytest.raises(PlanError, match=r"nothing is written; dense weights in it: \w+"):
        palettize_program(plain, tmp_path / "s.mlpackage", nothing)
    assert list(tmp_path.iterdir()) == []
    palettize_program(plain, tmp_path / "s.mlpackage")
    with pytest.raises(PlanError, match="all are compressed already"):
        palettize_program(tmp_path / "s.mlpackage", tmp_path / "again.mlpackage")


def function_of_two(*least):
    differs, same = (np.linspace(n, 2, 512, dtype=np.float32).reshape(32, 16) for n in least)

    @mb.program(input_specs=[mb.TensorSpec((1, 16))], opset_version=ct.target.iOS18)
    def program(x):
        one = mb.linear(x=x, weight=mb.const(val=differs, name="differs"))
        return mb.add(x=one, y=mb.linear(x=x, weight=mb.const(val=same, name="same")))

    return program


def several_functions(folder, default):
    parts = ct.utils.MultiFunctionDescriptor()
    for number, name in enumerate(("main", "other")):
        path = folder / f"{name}.mlpackage"
        ct.convert(
            function_of_two(number, -1),
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        ).save(str(path))
        parts.add_function(str(path), "main", name)
    parts.default_function_name = default
    ct.utils.save_multifunction(parts, str(folder / "both.mlpackage"))
    return folder / "both.mlpackage"


def test_functions_that_name_different_weights_alike_keep_them(tmp_path):
    path, out = several_functions(tmp_path, "main"), tmp_path / "small.mlpackage"
    report = palettize_program(path, out)
    assert [item.name for item in report.tensors] == ["same.weight"]
    assert [item.name for item in report.skipped] == ["differs.weight"]
    functions = program_of(open_package(out)).functions
    assert set(functions) == {"main", "other"}
    for number, name in enumerate(("main", "other")):
        (kept,) = [op for op in functions[name].operations if op.name == "differs"]
        assert kept.outputs[0].val.min() == number
    assert set(read_weights(out)) == {"same_palettized"}


def test_a_default_function_that_would_not_be_kept_is_refused_while_planning(tmp_path):
    with pytest.raises(BackendError, match="default function is 'other'"):
        plan_program(several_functions(tmp_path, "other"))
