"""Dtypes of inputs and outputs, and what a package says of itself, read and evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.proto.FeatureTypes_pb2 import ArrayFeatureType
from mil_evaluator import Package
from torch import Tensor, nn

from palette_core import ExportFunction, KMeansPalettizer
from palette_core.errors import BackendError, PluginOptionsError

X = torch.linspace(-1, 1, 24).reshape(3, 8)
PLACES = torch.tensor([2, 0], dtype=torch.int32)
Prepared = tuple[nn.Module, KMeansPalettizer]


class Picking(nn.Module):
    """Rows of a layer's output, and their numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 512)

    def forward(self, x: Tensor, places: Tensor) -> dict[str, Tensor]:
        return {"scores": self.layer(x)[places], "numbers": places + 1}


class Half(nn.Module):
    def __init__(self, model: Picking) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Tensor) -> Tensor:
        return self.model.layer(rows) / 2


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """One model for all: exports leave it as it is."""
    model = Picking().eval()
    palettizer = KMeansPalettizer(model)
    palettizer.prepare((X, PLACES), backend="coreml")
    return model, palettizer


def export(prepared: Prepared, path: Path, options: dict[str, Any], **arguments: Any) -> Path:
    model, palettizer = prepared
    functions = {
        "pick": ExportFunction((X, PLACES), output_names={"scores": "scores", "numbers": "ids"}),
        "half": ExportFunction((X,), module=Half(model), output_names="halves"),
    }
    return palettizer.export(
        path, functions=functions, backend="coreml", backend_options=options, **arguments
    )


def kinds(path: Path) -> dict[str, dict[str, str]]:
    described = ct.models.MLModel(str(path), skip_model_load=True).get_spec().description
    name = ArrayFeatureType.ArrayDataType.Name
    return {
        function.name: {
            each.name: name(each.type.multiArrayType.dataType)
            for each in (*function.input, *function.output)
        }
        for function in described.functions
    }


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_dtypes_are_those_that_are_asked_for_and_values_the_models(
    prepared: Prepared, precision: str, tmp_path: Path
) -> None:
    options = {
        "compute_precision": precision,
        "input_dtypes": {"features": "float16"},
        "output_dtypes": {"scores": "float16", "halves": "float32"},
        "version": "1.2",
        "author": "us",
        "license": "MIT",
        "description": "rows",
        "user_metadata": {"by": "them"},
    }
    path = export(prepared, tmp_path / "m.mlpackage", options, input_names={"x": "features"})
    found = kinds(path)
    assert found["pick"] == {
        "features": "FLOAT16",
        "places": "INT32",
        "scores": "FLOAT16",
        "ids": "INT32",
    }
    assert found["half"] == {"rows": "FLOAT32", "halves": "FLOAT32"}
    with torch.no_grad():
        wanted = prepared[0](X, PLACES)
    got = Package(path, "pick")([X.half().numpy(), PLACES.numpy()])
    np.testing.assert_allclose(got["scores"], wanted["scores"], atol=2e-2)
    assert got["scores"].dtype == np.float16
    np.testing.assert_array_equal(got["ids"], wanted["numbers"])
    package = ct.models.MLModel(str(path), skip_model_load=True)
    assert (package.version, package.author, package.license) == ("1.2", "us", "MIT")
    assert package.short_description == "rows"
    assert package.user_defined_metadata["by"] == "them"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_dtypes": {"z": "float16"}}, r"no input is called 'z'.*'x', 'places', 'rows'"),
        ({"output_dtypes": {"numbers": "float16"}}, "no output is called 'numbers'.*'ids'"),
        ({"output_dtypes": {"ids": "float16"}}, "'ids' holds no floats.*int32"),
        ({"input_dtypes": {"places": "float16"}}, "'places' holds no floats.*int32"),
        (
            {"input_dtypes": {"x": "float16"}, "image_inputs": {"x": {}}},
            "'x' is an image, of image_inputs",
        ),
        ({"image_inputs": {"z": {}}}, "image_inputs: no input is called 'z'"),
        ({"enumerated_shapes": {"z": [[1], [2]]}}, "enumerated_shapes: no input is called 'z'"),
    ],
)
def test_what_does_not_fit_is_refused(
    prepared: Prepared, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match=message):
        export(prepared, tmp_path / "m.mlpackage", options)
    assert list(tmp_path.iterdir()) == []


def test_what_a_function_fails_on_is_told_with_its_name(prepared: Prepared, tmp_path: Path) -> None:
    free = ({0: torch.export.Dim.AUTO},)
    functions = {
        "pick": ExportFunction((X, PLACES)),
        "half": ExportFunction((X,), free, Half(prepared[0])),
    }
    with pytest.raises(BackendError, match="function 'half': axis 0 of input 'rows' has no max"):
        prepared[1].export(tmp_path / "m.mlpackage", functions=functions)
    assert list(tmp_path.iterdir()) == []


def test_other_dtypes_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(PluginOptionsError, match="input_dtypes"):
        export(prepared, tmp_path / "m.mlpackage", {"input_dtypes": {"x": "float64"}})


def test_options_by_the_names_of_the_file_are_taken_in_planning(tmp_path: Path) -> None:
    torch.manual_seed(0)
    palettizer = KMeansPalettizer(nn.Sequential(nn.Conv2d(3, 64, 3)).eval())
    image = torch.rand(1, 3, 8, 8)
    options = {"input_names": "picture", "image_inputs": {"picture": {"scale": 1 / 255}}}
    palettizer.prepare((image,), backend="coreml", backend_options=options)
    path = palettizer.export(
        tmp_path / "m.mlpackage", (image,), backend="coreml", backend_options=options
    )
    described = ct.models.MLModel(str(path), skip_model_load=True).get_spec().description
    assert described.input[0].name == "picture"
    assert described.input[0].type.WhichOneof("Type") == "imageType"
