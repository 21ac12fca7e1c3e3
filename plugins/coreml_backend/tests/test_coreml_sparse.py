"""Sparse weights in packages: exact by coremltools' decoder, small, zero where they were zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coreml_cases import GRANULARITIES, INT8, UINT8, SelfAttention
from coremltools.converters.mil.mil import Function, Program
from mil_evaluator import run_package
from test_coreml_packages import EXACT, IOS26, export, operations, weight_file
from torch import Tensor, nn

import coremltools as ct  # isort: skip
from coreml_backend import read_weights
from coreml_backend.constants import emit
from coreml_backend.reading import decode
from coreml_backend_hooks import CoreMLOptions
from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    load_checkpoint,
)
from palette_core.errors import BackendError, PlanError
from palette_core.storage import PackedWeight, install_packed, palette_sites
from palette_core.tensors import PalettizedTensor

ROWS, COLUMNS = GRANULARITIES["groups on axis 0"], GRANULARITIES["groups on axis 1"]
SPARSE = {"sparsity_detection_threshold": 0.3, "stored_form": "sparse"}
SPECS: dict[str, dict[str, Any]] = {
    **{f"{bits} bits": {"n_bits": bits} for bits in (1, 2, 3, 4, 6, 8)},
    "uneven rows": {"granularity": ROWS},
    "columns": {"granularity": COLUMNS},
    "tiles": {"granularity": "tiles"},
    "channel scale": {"enable_per_channel_scale": True, "granularity": COLUMNS},
    "int8": {"lut_qspec": INT8, "granularity": ROWS},
    "affine": {"lut_qspec": UINT8, "granularity": COLUMNS},
    "affine, scale": {"lut_qspec": UINT8, "enable_per_channel_scale": True},
}


def made_up(
    shape: tuple[int, ...], n_bits: int = 2, axis: int = 0, dtype: torch.dtype = torch.float32,
    **given: Any,
) -> PalettizedTensor:  # fmt: skip
    """Random indices, tables and mask, for a spec such as those above."""
    random = torch.Generator().manual_seed(n_bits)
    granularity = given.get("granularity")
    grid = [1] * len(shape)
    if granularity == "tiles":
        grid[:2] = [2, 4]
    elif granularity is not None:
        grid[granularity.axis or 0] = shape[granularity.axis or 0] // granularity.group_size
    lut, lut_scale, zero, scale = (
        torch.randn(*grid, 1 << n_bits, 1, generator=random),
        None,
        None,
        None,
    )
    if "lut_qspec" in given:
        lut = (lut * 40).to(torch.int8)
        lut_scale = torch.rand((*grid, 1, 1), generator=random) / 64 + 1e-3
        if given["lut_qspec"] is UINT8:
            lut = lut.view(torch.uint8)
            zero = torch.randint(0, 256, lut_scale.shape, generator=random).to(torch.uint8)
    if given.get("enable_per_channel_scale"):
        sizes = [size if at == axis else 1 for at, size in enumerate(shape)]
        scale = (torch.rand(sizes, generator=random) + 0.5).to(dtype)
    mask = torch.rand(shape, generator=random) < 0.4
    mask[0] = torch.rand(shape[1:], generator=random) < 0.1
    made = PalettizedTensor(
        torch.randint(0, 1 << n_bits, shape, generator=random).to(torch.uint8) * mask,
        lut if lut_scale is not None else lut.to(dtype),
        n_bits, axis, dtype, lut_scale, zero, scale, mask,
    )  # fmt: skip
    made.check()
    return made


def decoded(made: PalettizedTensor, target: str) -> Tensor:
    """What a target's constant expressions decode to, without torch.export and files."""
    with Function({}, opset_version=getattr(ct.target, target)) as function:
        var = emit(made, "w")
        function.set_outputs([var])
    program = Program()
    program.add_function("main", function)
    return torch.from_numpy(decode(var.op))


@pytest.mark.parametrize("shape", [(16, 32), (8, 16, 3, 3), (8, 8, 2)], ids=str)
@pytest.mark.parametrize("target", ["iOS18", "iOS26"])
def test_every_spec_is_exact(shape: tuple[int, ...], target: str) -> None:
    for name, spec in SPECS.items():
        axis = 1 if len(shape) == 3 else 0
        made = made_up(shape, axis=axis, **spec)
        got = decoded(made, target)
        assert torch.equal(got, made.decode()), name
        assert not got[~made.mask].any(), name


class Layers(nn.Module):
    """A linear layer for each spec that is cut on one axis, a convolution, and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.ModuleList(nn.Linear(32, 16, bias=False) for _ in SPECS)
        self.image = nn.Conv2d(8, 16, 3, bias=False)
        self.steps = SelfAttention(16, 2)

    def forward(self, rows: Tensor, image: Tensor, steps: Tensor) -> Any:
        return (*(layer(rows) for layer in self.rows), self.image(image), self.steps(steps))


X = (
    torch.sin(torch.arange(64.0)).reshape(2, 32),
    torch.cos(torch.arange(200.0)).reshape(1, 8, 5, 5),
    torch.cos(torch.arange(48.0)).reshape(1, 3, 16),
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    model = Layers().eval()
    for at, spec in enumerate(SPECS.values()):
        install_packed(model, [f"rows.{at}.weight"], PackedWeight(made_up((16, 32), **spec)))
    install_packed(model, ["image.weight"], PackedWeight(made_up((16, 8, 3, 3), granularity=ROWS)))
    install_packed(model, ["steps.in_proj_weight"], PackedWeight(made_up((48, 16))))
    return model, export(model, X, tmp_path_factory.mktemp("sparse") / "m.mlpackage", EXACT)


def test_a_saved_package_holds_the_weights_by_name(package: Any) -> None:
    model, path = package
    read, count = read_weights(path), 0
    for site in palette_sites(model):
        wanted = site.palette.palettized()
        parts = [name for name in read if name.partition("[")[0] == site.name]
        count += len(parts)
        got = np.concatenate([read[name] for name in parts])
        assert np.array_equal(got, wanted.decode().numpy()), site.name
    assert operations(path)["constexpr_lut_to_sparse"] == count
    assert operations(path)["constexpr_sparse_to_dense"] == count
    assert operations(path)["constexpr_lut_to_dense"] == 0


def test_a_package_computes_what_torch_does(package: Any) -> None:
    model, path = package
    with torch.no_grad():
        wanted = model(*X)
    got = run_package(path, [x.numpy() for x in X])
    for made, right in zip(got.values(), wanted, strict=True):
        np.testing.assert_allclose(made, right.numpy(), atol=1e-5)


@pytest.mark.parametrize("options", [EXACT, IOS26], ids=lambda o: o.deployment_target)
def test_files_are_within_3_percent_of_the_ideal(options: CoreMLOptions, tmp_path: Path) -> None:
    specs = (SPECS["4 bits"], SPECS["uneven rows"], SPECS["channel scale"])
    model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in specs)).eval()
    made = [made_up((512, 512), **spec) for spec in specs]
    for at, weight in enumerate(made):
        install_packed(model, [f"{at}.weight"], PackedWeight(weight))
    path = export(model, (torch.zeros(1, 512),), tmp_path / "m.mlpackage", options)
    ideal = sum(weight.size_in_bits() for weight in made) / 8
    assert ideal <= weight_file(path).stat().st_size <= 1.03 * ideal


def test_one_flipped_byte_is_seen(tmp_path: Path) -> None:
    model, made = nn.Sequential(nn.Linear(32, 16, bias=False)).eval(), made_up((16, 32), 8)
    install_packed(model, ["0.weight"], PackedWeight(made))
    path = export(model, (torch.zeros(1, 32),), tmp_path / "m.mlpackage", EXACT)
    file = weight_file(path)
    data, codes = bytearray(file.read_bytes()), made.indices[made.mask].numpy().tobytes()
    assert data.count(codes) == 1
    data[data.index(codes) + 3] ^= 1
    file.write_bytes(data)
    assert (read_weights(path)["0.weight"] != made.decode().numpy()).sum() == 1


# --- from a palettizer --------------------------------------------------------------------------


def prepared(
    options: dict[str, Any], dtype: torch.dtype = torch.float32, **spec: Any
) -> tuple[KMeansPalettizer, nn.Module, tuple[Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16, bias=False)).eval().to(dtype)
    with torch.no_grad():
        model[0].weight[torch.rand(16, 32) < 0.6] = 0.0
    made = PalettizationSpec(**{"n_bits": 2, **SPARSE, **spec})
    rules = ModuleKMeansPalettizerConfig(
        op_state_spec={"weight": made}, enable_fast_kmeans_mode=made.cluster_dim == 1
    )
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig(global_config=rules))
    x = (torch.ones(1, 32, dtype=dtype),)
    palettizer.prepare(x, backend="coreml", backend_options=options)
    return palettizer, model, x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_float16_programs_keep_every_zero(dtype: torch.dtype, tmp_path: Path) -> None:
    palettizer, model, x = prepared({}, dtype, granularity=COLUMNS)
    wanted = model[0].weight.detach().clone()
    path = palettizer.export(tmp_path / "m.mlpackage", x, backend="coreml")
    read = read_weights(path)["0.weight"]
    assert read.dtype == np.float16
    assert np.array_equal(read == 0, wanted.numpy() == 0)
    np.testing.assert_allclose(read, wanted.float(), rtol=0 if dtype is torch.float16 else 2**-11)


def test_targets_before_ios18_refuse_in_planning_and_say_what_would_do(tmp_path: Path) -> None:
    old = {"deployment_target": "iOS17"}
    words = r"sparse weights: iOS17 cannot .*iOS18 can; what works.*'preserve_zero': True"
    with pytest.raises(PlanError, match=words):
        prepared(old)
    palettizer, model, x = prepared({})
    palettizer.export(tmp_path / "m.safetensors", backend="packed")
    loaded = load_checkpoint(tmp_path / "m.safetensors", nn.Sequential(nn.Linear(32, 16, False)))
    with pytest.raises(BackendError, match="stores sparse palettized weights from iOS18 on"):
        palettizer.export(
            tmp_path / "m.mlpackage", x, model=loaded, backend="coreml", backend_options=old
        )
    path = palettizer.export(tmp_path / "m.mlpackage", x, model=loaded, backend="coreml")
    assert operations(path)["constexpr_lut_to_sparse"] == 1
    assert not list(tmp_path.glob(".*"))
    assert torch.equal(loaded[0].weight, model[0].weight)


def test_vectors_of_nonzeros_are_refused_in_planning_and_from_checkpoints(tmp_path: Path) -> None:
    words = r"vectors of a sparse weight.*what works nearest to it: \{'cluster_dim': 1\}"
    with pytest.raises(PlanError, match=words):
        prepared({}, cluster_dim=2)
    model = nn.Sequential(nn.Linear(4, 4, bias=False)).eval()
    made = PalettizedTensor(
        torch.zeros((2, 4), dtype=torch.uint8), torch.ones((1, 1, 2, 2)), 1, 0, torch.float32,
        mask=torch.eye(4) > 0,
    )  # fmt: skip
    install_packed(model, ["0.weight"], PackedWeight(made))
    palettizer, _, _ = prepared({})
    with pytest.raises(BackendError, match=r"0\.weight has vectors of nonzeros"):
        palettizer.export(
            tmp_path / "m.mlpackage", (torch.ones(1, 4),), model=model, backend="coreml"
        )
