"""The way from a palettizer to a package: inputs, states, errors, files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from coreml_cases import E4M3
from mil_evaluator import run_package
from test_coreml_packages import EXACT, FOUR, assert_equal, export, pack, palettes
from torch import Tensor, nn

import coreml_backend
from coreml_backend import exporting
from coreml_backend.exporting import trace
from coreml_backend_hooks import CoreMLOptions
from palette_core import ExportBackend, KMeansPalettizer, PalettizationSpec
from palette_core.errors import BackendError
from palette_core.plugins import get_catalog
from palette_core.storage.packed_weight import PackedWeight
from palette_core.storage.sites import palette_sites

FLOATS = PalettizationSpec(n_bits=4, lut_qspec=E4M3)
X = (torch.linspace(-1, 1, 24).reshape(3, 8),)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.BatchNorm1d(16), nn.Linear(16, 4))


def finalized() -> nn.Module:
    return pack(mlp(), {"0.weight": FOUR, "3.weight": FOUR})


# --- the documented calls -----------------------------------------------------------------------


def test_from_palettizer_to_package(tmp_path) -> None:
    model = mlp()
    palettizer = KMeansPalettizer(model)
    palettizer.prepare(X)
    path = palettizer.export(tmp_path / "m.mlpackage", X, backend=ExportBackend.CoreML)
    assert path == tmp_path / "m.mlpackage"
    weights = coreml_backend.read_weights(path)
    for name, made in palettes(model).items():
        np.testing.assert_allclose(weights[name], made.decode(), rtol=2**-11)


def test_a_model_that_is_finalized_for_another_backend_is_exported(tmp_path) -> None:
    """``finalize()`` means Core AI, whose operator no other converter knows."""

    def known_elsewhere(*arguments: object) -> Tensor:
        raise AssertionError("traced for another backend")

    model = finalized()
    sites = palette_sites(model, PackedWeight)
    for site in sites:
        site.palette.traced_as = known_elsewhere
    path = KMeansPalettizer(model).export(tmp_path / "m.mlpackage", X, backend="coreml")
    assert coreml_backend.read_weights(path).keys() == {"0.weight", "3.weight"}
    assert [site.palette.traced_as for site in sites] == [known_elsewhere] * 2


def test_example_inputs_may_be_channels_last(tmp_path) -> None:
    """coremltools takes the order of dimensions only."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 16, 3), nn.Flatten(), nn.Linear(16 * 36, 4)).eval()
    x = torch.randn(1, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    palettizer = KMeansPalettizer(model)
    palettizer.prepare((x,))
    for form, inputs in (("tuple", (x,)), ("dict", {"input": x})):
        path = palettizer.export(tmp_path / f"{form}.mlpackage", inputs, backend="coreml")
        assert set(coreml_backend.read_weights(path)) == {"0.weight", "2.weight"}
    assert not x.is_contiguous()


def test_whoever_imports_the_package_may_convert_alone(tmp_path) -> None:
    """In a process of its own, in which nothing else has registered anything."""
    script = f"""
import coremltools as ct, torch, coreml_backend
from torch import nn
from palette_core import KMeansPalettizer
model, x = nn.Sequential(nn.Linear(32, 32)), (torch.zeros(1, 32),)
palettizer = KMeansPalettizer(model)
palettizer.prepare(x)
model = palettizer.finalize(backend="coreml")
program = torch.export.export(model, x).run_decompositions({{}})
for traced, inputs in ((program, None), (torch.jit.trace(model, x), [ct.TensorType("x", (1, 32))])):
    package = ct.convert(traced, inputs=inputs, minimum_deployment_target=ct.target.iOS18,
                         compute_precision=ct.precision.FLOAT32)
    package.save({str(tmp_path / "m.mlpackage")!r})
    (weight,) = coreml_backend.read_weights({str(tmp_path / "m.mlpackage")!r}).values()
    assert torch.equal(torch.from_numpy(weight), model[0].weight), "decoded otherwise"
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_converting_alone_without_a_target_says_what_to_pass() -> None:
    program = torch.export.export(finalized(), X).run_decompositions({})
    with pytest.raises(BackendError, match=r"minimum_deployment_target=coremltools\.target\.iOS18"):
        ct.convert(program)


def test_converting_tables_of_8_bit_floats_alone_says_what_there_is() -> None:
    traced = torch.jit.trace(pack(nn.Sequential(nn.Linear(8, 4)), {"0.weight": FLOATS}).eval(), X)
    inputs, target = [ct.TensorType("x", (3, 8))], ct.target.iOS18
    with pytest.raises(BackendError, match=r"Core ML has int8 and uint8 only"):
        ct.convert(traced, inputs=inputs, minimum_deployment_target=target)


def test_listing_plugins_imports_no_coremltools() -> None:
    script = (
        "import sys; from palette_core.plugins.catalog import get_catalog; "
        "assert get_catalog().backend('coreml').suffix == '.mlpackage'; "
        "assert not {'coremltools', 'coreml_backend'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_entry() -> None:
    (item,) = [i for i in get_catalog().export_backends if i.entry.name == "coreml"]
    assert item.distribution.name == "palette-core-coreml"
    assert item.entry.options is CoreMLOptions
    assert not item.entry.supports_mmap
    assert all(field.description for field in CoreMLOptions.model_fields.values())


# --- inputs and states --------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, *, other: Tensor) -> dict[str, Tensor]:
        return {"sum": self.left(x) + self.right(other)}


def test_inputs_by_keyword_and_outputs_by_name(tmp_path) -> None:
    model = pack(Branching(), {"left.weight": FOUR, "right.weight": FOUR})
    path = export(model, {"x": X[0], "other": X[0]}, tmp_path / "m.mlpackage")
    described = ct.models.MLModel(str(path), skip_model_load=True).get_spec().description
    assert [i.name for i in described.input] == ["x", "other"]
    assert_equal(path, model)


@pytest.mark.parametrize("inputs", [(X[0], None), {"x": X[0], "twice": False}])
def test_inputs_that_are_no_tensors_are_no_inputs_of_the_package(inputs, tmp_path) -> None:
    class Options(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: Tensor, shift: Tensor | None = None, twice: bool = False) -> Tensor:
            y = self.layer(x) if shift is None else self.layer(x) + shift
            return y + y if twice else y

    model = pack(Options(), {"layer.weight": FOUR})
    path = export(model, inputs, tmp_path / "m.mlpackage")
    assert_equal(path, model)


def test_dynamic_shapes_become_ranges(tmp_path) -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    path = export(finalized(), X, tmp_path / "m.mlpackage", dynamic_shapes=({0: batch},))
    described = ct.models.MLModel(str(path), skip_model_load=True).get_spec().description
    sizes = described.input[0].type.multiArrayType.shapeRange.sizeRanges
    assert [(s.lowerBound, s.upperBound) for s in sizes] == [(2, 64), (8, 8)]
    with pytest.raises(BackendError, match=r"axis 0 of input .* has no maximum"):
        export(finalized(), X, path, dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))


def test_shapes_are_listed_where_they_are_asked_for(tmp_path) -> None:
    rows = ({0: torch.export.Dim("batch", min=1, max=8)},)
    options = CoreMLOptions(
        compute_precision="float32", input_names=("x",), enumerated_shapes={"x": ((3, 8), (5, 8))}
    )
    model = finalized().eval()
    path = export(model, X, tmp_path / "m.mlpackage", options, dynamic_shapes=rows)
    kind = description(path).input[0].type.multiArrayType
    assert kind.dataType == kind.FLOAT32
    assert [tuple(s.shape) for s in kind.enumeratedShapes.shapes] == [(3, 8), (5, 8)]
    for x in (X[0], torch.linspace(-1, 1, 40).reshape(5, 8)):
        (got,) = run_package(path, [x.numpy()]).values()
        np.testing.assert_allclose(got, model(x).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ({"y": ((3, 8), (5, 8))}, "enumerated_shapes: no input is called 'y'"),
        ({"input": ((3, 8),)}, "give two shapes or more, no two alike"),
        ({"input": ((3, 8), (3, 8))}, "give two shapes or more, no two alike"),
        ({"input": ((3, 8), (5,))}, r"'input' has 2 axes, and not as \[5\]"),
        ({"input": ((3, 8), (9, 8))}, r"axis 0 of 'input' is 1 to 8, and not 9 as in \[9, 8\]"),
        ({"input": ((3, 8), (3, 9))}, r"axis 1 of 'input' is 8, and not 9 as in \[3, 9\]"),
    ],
)
def test_shapes_that_the_program_does_not_take(shapes, text, tmp_path) -> None:
    rows = ({0: torch.export.Dim("batch", min=1, max=8)},)
    options = CoreMLOptions(enumerated_shapes=shapes)
    with pytest.raises(BackendError, match=text):
        export(finalized(), X, tmp_path / "m.mlpackage", options, dynamic_shapes=rows)


def test_the_model_is_left_as_it_was(tmp_path) -> None:
    model = finalized().train()
    model[2].eval()
    flags = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export(model, X, tmp_path / "m.mlpackage")
    assert [module.training for module in model.modules()] == flags
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    # Exported in evaluation mode: dropout is gone, the statistics are constants.
    with pytest.raises(BackendError):
        export(model, (torch.zeros(3, 9),), tmp_path / "wrong.mlpackage")
    assert [module.training for module in model.modules()] == flags


class Grouped(nn.Module):
    """Two query heads for each head of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (4, 4)).transpose(1, 2)
        k = self.k(x).unflatten(-1, (2, 4)).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)


def test_grouped_heads_of_attention(tmp_path) -> None:
    model = pack(Grouped(), {"q.weight": FOUR, "k.weight": FOUR})
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(trace(model, (x,)).module()(x), model(x))
    assert_equal(export(model, (x,), tmp_path / "m.mlpackage"), model)


# --- errors -------------------------------------------------------------------------------------


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erfinv(x)


def test_an_operation_without_conversion_is_named(tmp_path) -> None:
    model = nn.Sequential(nn.Identity(), nn.Sequential(Unknown()))
    with pytest.raises(
        BackendError, match=r"no conversion for aten\.erfinv\.default \(in '1\.0'\)"
    ):
        export(model, X, tmp_path / "m.mlpackage")


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv_transpose1d(x[None], x[:, :, None], stride=2, output_padding=1)


def test_an_operation_that_fails_to_convert_is_named(tmp_path) -> None:
    with pytest.raises(BackendError, match=r"cannot convert aten\.conv_transpose1d\.default"):
        export(Failing(), (torch.zeros(8, 8),), tmp_path / "m.mlpackage")


def test_without_inputs(tmp_path) -> None:
    with pytest.raises(BackendError, match="needs example_inputs"):
        export(finalized(), None, tmp_path / "m.mlpackage")


def test_a_model_that_torch_cannot_export(tmp_path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(BackendError, match=r"torch\.export cannot take Odd"):
        export(Odd(), X, tmp_path / "m.mlpackage")


def test_a_weight_that_did_not_stay_palettized_is_an_error(tmp_path, monkeypatch) -> None:
    convert = exporting.convert

    def dense(program, face, options, wide=()):
        convert(program, face, options)
        return convert(trace(mlp(), X), face, options)

    monkeypatch.setattr(exporting, "convert", dense)
    with pytest.raises(BackendError, match=r"made dense weights of 0\.weight, 3\.weight"):
        export(finalized(), X, tmp_path / "m.mlpackage")


# --- files --------------------------------------------------------------------------------------


X16 = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))


def palettized(model: nn.Module) -> KMeansPalettizer:
    palettizer = KMeansPalettizer(model, None)
    palettizer.prepare((X16,), show_progress=False)
    return palettizer


def content(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_package_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    path = tmp_path / "m.mlpackage"
    palettized(nn.Sequential(nn.Linear(16, 16))).export(path, (X16,), backend="coreml")
    (path / "left_over").touch()
    before = content(path)
    other = palettized(nn.Sequential(nn.Linear(16, 4)))
    monkeypatch.setattr(exporting, "_stored_names", lambda *_: 1 / 0)
    with pytest.raises(BackendError, match="division by zero"):
        other.export(path, (X16,), backend="coreml")
    assert content(path) == before
    monkeypatch.undo()
    other.export(path, (X16,), backend="coreml")
    assert next(iter(coreml_backend.read_weights(path).values())).shape == (4, 16)
    assert [p.name for p in tmp_path.iterdir()] == ["m.mlpackage"]
    assert not (path / "left_over").exists()


# --- names, images, metadata ----------------------------------------------------------------------


class Counts(nn.Module):
    """Two inputs, two outputs, a state."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.register_buffer("total", torch.zeros(4, 6, 6))

    def forward(self, image: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        made = self.layer(image) * weight
        self.total.add_(made[0])
        return made, self.total * 2


def description(path: Path):
    return ct.models.MLModel(str(path), skip_model_load=True).get_spec().description


def test_names_images_and_metadata(tmp_path) -> None:
    torch.manual_seed(0)
    model = pack(Counts().eval(), {"layer.weight": FOUR})
    inputs = (torch.rand(1, 3, 8, 8), torch.ones(1))
    options = CoreMLOptions(
        compute_precision="float32",
        input_names=("picture", "factor"),
        output_names=("now", "sum"),
        state_names=("memory",),
        image_inputs={
            "picture": {"scale": 1 / 255, "bias": (0.1, 0.2, 0.3), "color_layout": "BGR"}
        },
        user_metadata={"classes": "a,b"},
        author="somebody",
    )
    path = export(model, inputs, tmp_path / "m.mlpackage", options)
    said = description(path)
    assert [item.name for item in said.input] == ["picture", "factor"]
    assert [item.name for item in said.output] == ["now", "sum"]
    assert [item.name for item in said.state] == ["memory"]
    assert said.input[0].type.WhichOneof("Type") == "imageType"
    assert said.metadata.author == "somebody"
    assert said.metadata.userDefined["classes"] == "a,b"
    pixels = torch.randint(0, 256, (1, 3, 8, 8)).float()
    got = run_package(path, [pixels.numpy(), np.ones(1, np.float32)])
    assert list(got) == ["now", "sum"]
    seen = pixels / 255 + torch.tensor([0.1, 0.2, 0.3]).reshape(1, 3, 1, 1)
    model.total.zero_()
    wanted = model(seen, torch.ones(1))
    np.testing.assert_allclose(got["now"], wanted[0].detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["sum"], wanted[1].detach(), rtol=1e-4, atol=1e-5)


class Captions(nn.Module):
    """A picture, and tokens beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.words = nn.Conv2d(3, 4, 3), nn.Embedding(4096, 4)

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        return self.layer(image).mean((2, 3)) + self.words(ids).mean(1)


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_inputs_beside_an_image_keep_their_type(precision, tmp_path) -> None:
    model = pack(Captions().eval(), {"layer.weight": FOUR})
    inputs = (torch.rand(1, 3, 8, 8), torch.tensor([[4095, 2049]]))
    options = CoreMLOptions(compute_precision=precision, image_inputs={"image": {}})
    path = export(model, inputs, tmp_path / "m.mlpackage", options)
    kind = description(path).input[1].type.multiArrayType
    assert kind.dataType == kind.INT32


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"input_names": ("a", "b")}, r"input_names: 2 names, .* for 1"),
        ({"output_names": ("a", "a")}, r"output_names"),
        ({"image_inputs": {"y": {}}}, r"image_inputs: no input is called 'y'"),
    ],
)
def test_names_that_do_not_fit(options, text, tmp_path) -> None:
    with pytest.raises(BackendError, match=text):
        export(finalized(), X, tmp_path / "m.mlpackage", CoreMLOptions(**options))


class Fused(nn.Module):
    """Queries, keys and values in one weight, the last of which nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, _ = self.qkv.weight.chunk(3)
        return nn.functional.linear(x, q) * nn.functional.linear(x, k)


def test_a_piece_of_a_weight_that_nothing_uses(tmp_path) -> None:
    model = pack(Fused(), {"qkv.weight": FOUR})
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    path = export(model, (x,), tmp_path / "m.mlpackage", EXACT)
    assert set(coreml_backend.read_weights(path)) == {"qkv.weight[0:16]", "qkv.weight[16:32]"}
    (got,) = run_package(path, [x.numpy()]).values()
    np.testing.assert_allclose(got, model(x).detach(), rtol=1e-5, atol=1e-6)


def test_what_is_no_package_is_not_replaced(tmp_path) -> None:
    folder = tmp_path / "m.mlpackage"
    folder.mkdir()
    (folder / "precious").touch()
    palettizer = palettized(nn.Sequential(nn.Linear(16, 16)))
    with pytest.raises(BackendError, match="exists and is no Core ML package"):
        palettizer.export(folder, (X16,), backend="coreml")
    assert (folder / "precious").exists()
    (folder / "precious").rename(folder / "Manifest.json")
    palettizer.export(folder, (X16,), backend="coreml")
    assert (folder / "Data").is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["m.mlpackage"]
