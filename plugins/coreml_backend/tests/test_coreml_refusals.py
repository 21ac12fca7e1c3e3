"""What planning refuses, and that the lowering refuses and takes the same."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import coremltools as ct
import pytest
import torch
from coreml_cases import BITS, GRANULARITIES, LAYERS, LUTS, Cell, palette
from coremltools.converters.mil.mil import Function, Program
from hypothesis import given, settings
from hypothesis import strategies as st

from coreml_backend.backend import CoreMLBackend
from coreml_backend.constants import emit
from coreml_backend.reading import decode
from coreml_backend_hooks import CoreMLOptions, Target
from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    load_checkpoint,
)
from palette_core.errors import BackendError, IncompatibleShapeError, PlanError
from palette_core.planning.choose import lay_out
from palette_core.plugins import Refusal, TensorFacts, get_catalog, validate_options

SPECS = st.builds(
    PalettizationSpec,
    n_bits=st.sampled_from(BITS),
    granularity=st.sampled_from(list(GRANULARITIES.values())),
    cluster_dim=st.sampled_from((1, 2, 4)),
    lut_qspec=st.sampled_from(list(LUTS.values())),
    enable_per_channel_scale=st.booleans(),
)
TARGETS = ("iOS16", "macOS14", "iOS18", "watchOS11", "iOS26", "macOS26")


def refuses(facts: TensorFacts, **options: object) -> Refusal | None:
    return CoreMLBackend(CoreMLOptions(**options)).check_support(facts)


def decoded(target: str, made) -> torch.Tensor:
    """What a target's constant expressions decode to, without torch.export and files."""
    version = getattr(ct.target, target)
    with Function({}, opset_version=version) as function:
        var = emit(made, "w")
        function.set_outputs([var])
    program = Program()
    program.add_function("main", function)
    return torch.from_numpy(decode(var.op))


@settings(deadline=None, derandomize=True, max_examples=150)
@given(SPECS, st.sampled_from(list(LAYERS)), st.sampled_from(TARGETS))
def test_what_is_taken_is_exact_and_what_is_refused_cannot_be_stored(spec, layer, target) -> None:
    try:
        facts = Cell(layer, spec).facts()
    except IncompatibleShapeError:
        return
    refusal = refuses(facts, deployment_target=target, compute_precision="float32")
    fp8 = spec.lut_qspec is not None and spec.lut_qspec.dtype.is_floating_point
    if fp8:
        assert refusal is not None
        assert "float8_e4m3fn" in refusal.reason
        return
    made = palette(facts.layout, spec, LAYERS[layer].axis)
    if refusal is None:
        assert torch.equal(decoded(target, made), made.decode())
    else:
        with pytest.raises(BackendError):
            decoded(target, made)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    SPECS,
    st.sampled_from((None, 0.3)),
    st.sampled_from(list(LAYERS)),
    st.sampled_from(TARGETS),
    st.booleans(),
    st.booleans(),
)
def test_what_a_refusal_proposes_is_taken(spec, zeros, layer, target, half, exact) -> None:
    dtype = torch.float16 if half else torch.float32
    spec = spec.model_copy(update={"sparsity_detection_threshold": zeros})
    try:
        facts = Cell(layer, spec).facts(dtype)
    except IncompatibleShapeError:
        return
    options = {"deployment_target": target, "compute_precision": "float32" if exact else "float16"}
    refusal = refuses(facts, **options)
    if refusal is None:
        return
    assert refusal.instead is not None
    assert refusal.instead != spec
    layout = lay_out(facts.shape, refusal.instead, LAYERS[layer].axis)
    assert refuses(replace(facts, spec=refusal.instead, layout=layout), **options) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_that_core_ml_lacks(dtype) -> None:
    refusal = refuses(Cell("Linear", PalettizationSpec()).facts(dtype))
    assert refusal is not None
    assert "convert the model with .float()" in refusal.reason


def test_half_weights_with_tables_of_integers() -> None:
    facts = Cell("Linear", PalettizationSpec(lut_qspec=LUTS["int8"])).facts(torch.float16)
    assert refuses(facts) is None
    refusal = refuses(facts, compute_precision="float32")
    assert refusal is not None
    assert refusal.instead == PalettizationSpec()


def test_plan_says_it_with_the_nearest_spec() -> None:
    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec={
                "weight": PalettizationSpec(
                    n_bits=2, lut_qspec=LUTS["int8"], enable_per_channel_scale=True
                )
            }
        )
    )
    palettizer = KMeansPalettizer(torch.nn.Linear(8, 8), config)
    with pytest.raises(PlanError, match=r"iOS26 takes both; what works.*'lut_qspec': None"):
        palettizer.make_plan((torch.zeros(1, 8),), backend="coreml")


def test_targets_are_those_of_coremltools() -> None:
    for name in get_args(Target):
        assert getattr(ct.target, name) >= ct.target.iOS16
    assert {t.name for t in type(ct.target.iOS18) if t >= ct.target.iOS16} <= set(get_args(Target))


def test_options_are_checked() -> None:
    entry = get_catalog().backend("coreml")
    with pytest.raises(ValueError, match="iOS18"):
        validate_options(entry, {"deployment_target": "iOS15"})


def planned(model: torch.nn.Module, x: torch.Tensor, **options: object) -> None:
    everything = PalettizationSpec(n_bits=2)
    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(module_state_spec={}),
        module_name_configs={
            "0": ModuleKMeansPalettizerConfig(module_state_spec={"*": everything})
        },
    )
    KMeansPalettizer(torch.nn.Sequential(model).eval(), config).make_plan(
        (x,), backend="coreml", backend_options=options
    )


@pytest.mark.parametrize(
    ("layer", "x", "text"),
    [
        (torch.nn.PReLU(8), torch.zeros(2, 8), r"0\.weight.*the slope of prelu as plain numbers"),
        (
            torch.nn.ConvTranspose1d(8, 8, 3),
            torch.zeros(1, 8, 5),
            r"0\.bias.*the bias of conv_transpose1d as plain numbers",
        ),
    ],
)
def test_what_coremltools_wants_as_plain_numbers_is_said_in_planning(layer, x, text) -> None:
    with pytest.raises(PlanError, match=text):
        planned(layer, x)


class Inverse(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.inv(x @ x.mT)


def test_an_operation_that_does_not_convert_is_said_in_planning() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Sequential(Inverse())).eval()
    palettizer = KMeansPalettizer(model)
    with pytest.raises(PlanError, match=r"linalg_inv\w*\.default \(in '1\.0'\)"):
        palettizer.prepare((torch.randn(1, 8, 8),), backend="coreml")
    assert palettizer.report is None


@pytest.mark.parametrize(
    ("dtype", "spec", "options", "text"),
    [
        (torch.float16, {"lut_qspec": LUTS["int8"]}, {"compute_precision": "float32"}, "round"),
        (torch.float32, {"lut_qspec": LUTS["float8"]}, {}, "no tables of float8_e4m3fn"),
        (torch.bfloat16, {}, {}, "no bfloat16"),
        (torch.float64, {}, {}, "no float64"),
    ],
)
def test_a_model_from_a_checkpoint_is_refused_alike(dtype, spec, options, text, tmp_path) -> None:
    def make() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(16, 8)).eval().to(dtype)

    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec={"weight": PalettizationSpec(**spec)}
        )
    )
    x = (torch.zeros(1, 16, dtype=dtype),)
    palettizer = KMeansPalettizer(make(), config)
    palettizer.prepare(x)
    palettizer.export(tmp_path / "m.safetensors", backend="packed")
    loaded = load_checkpoint(tmp_path / "m.safetensors", make())
    with pytest.raises(BackendError, match=rf"^0\.weight: .*{text}"):
        palettizer.export(
            tmp_path / "m.mlpackage", x, model=loaded, backend="coreml", backend_options=options
        )
