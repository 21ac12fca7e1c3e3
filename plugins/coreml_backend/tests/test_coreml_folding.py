"""Packages for iOS 26 in which no floats are scaled: what they decode to, hold and weigh."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from coreml_cases import INT8, UINT8
from coremltools.converters.mil.mil import Function, Program, types
from mil_evaluator import run_package
from test_coreml_packages import operations, palettes, weight_file
from test_coreml_sparse import made_up
from torch import nn

import coremltools as ct  # isort: skip
from coreml_backend import read_weights
from coreml_backend.constants import emit
from coreml_backend.reading import constant_expressions, decode, open_package
from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
)
from palette_core.errors import BackendError, PlanError
from palette_core.programs import palettize_program
from palette_core.tensors import PalettizedTensor

SCALES: dict[str, tuple[int, ...]] = {
    "by channel": (16, 1),
    "by block of inputs": (16, 4),
    "by second channel": (8, 2),
}
FLOATS = (types.fp16, types.fp32)


def scaled(scale: tuple[int, ...], grid: tuple[int, ...], dim: int, **given: Any) -> Any:
    """A random weight of 16 × 32 with tables on a grid, and a scale on another."""
    random = torch.Generator().manual_seed(0)
    n_bits = given.get("n_bits", 3)
    lut, parts = torch.randn(*grid, 1 << n_bits, dim, generator=random), {}
    if "zero" in given:
        lut = (lut * 30 + 100).clamp(0, 255).to(torch.uint8)
        parts["lut_scale"] = torch.rand(*grid, 1, 1, generator=random) / 64 + 1e-3
        if given["zero"]:
            zero = torch.randint(0, 256, (*grid, 1, 1), generator=random)
            parts["lut_zero_point"] = zero.to(torch.uint8)
    indices = torch.randint(0, 1 << n_bits, (16 // dim, 32), generator=random).to(torch.uint8)
    parts["scale"] = torch.rand(scale, generator=random) + 0.5
    made = PalettizedTensor(indices, lut, n_bits, 0, torch.float32, **parts)
    made.check()
    return made


def stored(made: PalettizedTensor, *, folds: bool = True, target: str = "iOS26") -> Any:
    """The last operation of what decodes a weight, without torch.export and files."""
    with Function({}, opset_version=getattr(ct.target, target)) as function:
        var = emit(made, "w", folds=folds)
        function.set_outputs([var])
    Program().add_function("main", function)
    return var.op


def scales_floats(op: Any) -> bool:
    """Return whether an operation, or one that its result is made of, scales floats."""
    found = op.op_type == "constexpr_blockwise_shift_scale" and op.data.dtype in FLOATS
    return found or any(scales_floats(v.op) for v in op.inputs.values() if v is not None and v.op)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("grid", [(1, 1), (4, 1), (1, 8), (2, 2)], ids=str)
@pytest.mark.parametrize("zero", [False, True], ids=["int8", "affine"])
def test_both_scales_stand_over_8_bit_data(scale: str, grid: Any, zero: bool) -> None:
    for dim, n_bits in ((1, 3), (2, 3), (1, 8)):
        made = scaled(SCALES[scale], grid, dim, zero=zero, n_bits=n_bits)
        op = stored(made)
        assert op.op_type == "constexpr_blockwise_shift_scale"
        assert scales_floats(stored(made, folds=False))
        assert not scales_floats(op)
        # Two roundings became two others, of float32.
        np.testing.assert_allclose(decode(op), made.decode(), rtol=2**-22, atol=0)


def test_tables_of_floats_are_multiplied_and_exact() -> None:
    for dim in (1, 2):
        made = scaled((16, 1), (1, 4), dim, n_bits=1)
        op = stored(made)
        assert op.op_type == "constexpr_lut_to_dense"
        assert torch.equal(torch.from_numpy(decode(op)), made.decode())
    with pytest.raises(BackendError, match="scales per block"):
        stored(scaled((16, 4), (1, 4), 1))


@pytest.mark.parametrize("target", ["iOS18", "iOS26"])
@pytest.mark.parametrize("spec", [{}, {"lut_qspec": INT8}, {"lut_qspec": UINT8}], ids=str)
def test_sparse_weights_scale_no_floats(spec: dict[str, Any], target: str) -> None:
    made = made_up((16, 64), n_bits=2, enable_per_channel_scale=True, **spec)
    assert scales_floats(stored(made, folds=False, target=target))
    op = stored(made, target=target)
    assert not scales_floats(op)
    assert torch.equal(torch.from_numpy(decode(op)), made.decode())


def config(**spec: Any) -> KMeansPalettizerConfig:
    made = PalettizationSpec(**spec)
    module = ModuleKMeansPalettizerConfig(op_state_spec={"weight": made})
    return KMeansPalettizerConfig(global_config=module)


LAYER = {
    "n_bits": 4,
    "granularity": {"type": "per_grouped_channel", "axis": 0, "group_size": 16},
    "enable_per_channel_scale": True,
}


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_packages_compute_alike_and_weigh_what_is_told(precision: str, tmp_path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512, bias=False), nn.ReLU()).eval()
    x, sizes = torch.randn(2, 256), {}
    palettizer = KMeansPalettizer(model, config(**LAYER, lut_qspec=INT8))
    palettizer.prepare((x,))
    wanted = palettes(model)["0.weight"].decode()
    for how in ("beside", "folded"):
        path = palettizer.export(
            tmp_path / f"{how}.mlpackage",
            (x,),
            backend_options={
                "deployment_target": "iOS26",
                "channel_scales": how,
                "compute_precision": precision,
            },
        )
        roots = list(constant_expressions(open_package(path), roots=True))
        assert any(map(scales_floats, roots)) == (how == "beside")
        near = 2**-21 if precision == "float32" else 2**-9
        np.testing.assert_allclose(read_weights(path)["0.weight"], wanted, rtol=near, atol=1e-7)
        (got,) = run_package(path, [x.numpy()]).values()
        np.testing.assert_allclose(got, model(x).detach(), rtol=near * 8, atol=near * 8)
        sizes[how] = weight_file(path).stat().st_size
        assert operations(path)["constexpr_blockwise_shift_scale"] == (2 if how == "beside" else 1)
    assert 0.97 < sizes["folded"] / sizes["beside"] <= 1


def test_small_weights_are_kept_in_float16(tmp_path) -> None:
    for size in (1.0, 1e-4, 1e-6):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64, bias=False)).eval()
        model[0].weight.data.normal_().mul_(size)
        palettizer = KMeansPalettizer(model, config(enable_per_channel_scale=True, lut_qspec=INT8))
        x = torch.randn(2, 64)
        palettizer.prepare((x,))
        wanted = palettes(model)["0.weight"].decode().double().numpy()
        options = {"deployment_target": "iOS26", "channel_scales": "folded"}
        path = palettizer.export(tmp_path / "m.mlpackage", (x,), backend_options=options)
        lost = np.linalg.norm(read_weights(path)["0.weight"] - wanted, axis=1)
        assert (lost < 2**-10 * np.linalg.norm(wanted, axis=1)).all(), size


def test_a_program_that_exists_takes_the_form(tmp_path) -> None:
    torch.manual_seed(0)
    plain = tmp_path / "plain.mlpackage"
    layer = nn.Sequential(nn.Linear(64, 64, bias=False)).eval()
    program = torch.export.export(layer, (torch.randn(2, 64),)).run_decompositions({})
    ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS26,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    ).save(str(plain))
    out = tmp_path / "small.mlpackage"
    options = {"deployment_target": "iOS26", "channel_scales": "folded"}
    palettize_program(
        plain, out, config(**LAYER, lut_qspec=INT8), backend_options=options
    )  # fmt: skip
    roots = list(constant_expressions(open_package(out), roots=True))
    assert roots
    assert not any(map(scales_floats, roots))


def test_what_would_be_no_smaller_than_dense_is_refused_while_planning() -> None:
    model = nn.Sequential(nn.Linear(64, 16, bias=False)).eval()
    options = {"deployment_target": "iOS26", "channel_scales": "folded"}
    for spec, what in (
        ({"n_bits": 8, "enable_per_channel_scale": True}, "times the dense weight"),
        ({"n_bits": 2, "scale_block_size": 16}, "scales per block of inputs"),
    ):
        palettizer = KMeansPalettizer(model, config(**spec))
        with pytest.raises(PlanError, match=f"channel_scales folded.*{what}"):
            palettizer.prepare(
                (torch.randn(1, 64),), backend="coreml", backend_options=options
            )  # fmt: skip
