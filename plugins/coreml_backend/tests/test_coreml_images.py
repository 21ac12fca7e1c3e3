"""Inputs and outputs that are images, read and evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.proto.FeatureTypes_pb2 import ImageFeatureType
from mil_evaluator import Package
from torch import Tensor, nn

from palette_core import KMeansPalettizer
from palette_core.errors import BackendError, PluginOptionsError

X = torch.linspace(0, 255, 3 * 8 * 10).reshape(1, 3, 8, 10)


class Painting(nn.Module):
    """Colors of a convolution as pixels, a gray picture, and a number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.paint, self.gray = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        picture = self.paint(x).clamp(0, 255)
        return {"picture": picture, "gray": self.gray(x).clamp(0, 255), "mean": picture.mean()}


def exported(path: Path, **options: Any) -> tuple[Painting, Path]:
    model = Painting().eval()
    palettizer = KMeansPalettizer(model)
    how = {"backend": "coreml", "backend_options": options}
    palettizer.prepare((X,), **how)
    names = {"output_names": {"picture": "painted", "gray": "shade"}}
    return model, palettizer.export(path, (X,), **how, **names)


def described(path: Path) -> dict[str, tuple[str, int, int]]:
    spec = ct.models.MLModel(str(path), skip_model_load=True).get_spec().description
    name = ImageFeatureType.ColorSpace.Name
    return {
        each.name: (name(image.colorSpace), image.height, image.width)
        for each in (*spec.input, *spec.output)
        if each.type.WhichOneof("Type") == "imageType"
        for image in (each.type.imageType,)
    }


@pytest.mark.parametrize(
    ("colors", "gray"), [("RGB", "G"), ("BGR", "G16")], ids=["rgb and gray", "bgr and float16"]
)
@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_images_are_what_was_asked_for_and_their_pixels_the_models(
    colors: str, gray: str, precision: str, tmp_path: Path
) -> None:
    model, path = exported(
        tmp_path / "m.mlpackage",
        image_inputs={"x": {"color_layout": "RGB"}},
        image_outputs={"painted": colors, "shade": gray},
        compute_precision=precision,
    )
    spaces = {"G": "GRAYSCALE", "G16": "GRAYSCALE_FLOAT16"}
    assert described(path) == {
        "x": ("RGB", 8, 10), "painted": (colors, 8, 10), "shade": (spaces[gray], 8, 10)
    }  # fmt: skip
    with torch.no_grad():
        wanted = model(X)
    got = Package(path)([X.numpy()])
    for name, key in (("painted", "picture"), ("shade", "gray")):
        atol = 0.5 if precision == "float16" else 1e-2
        np.testing.assert_allclose(got[name].astype(np.float32), wanted[key], atol=atol)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"image_outputs": {"pictur": "RGB"}}, "image_outputs: no output is called"),
    "gray": ({"image_outputs": {"gray": "RGB"}}, r"'gray' is \['1', '1', .*\[1, 3, height, width"),
    "number": ({"image_outputs": {"mean": "G"}}, r"'mean' is \[\], and an image of G is"),
    "twice": (
        {"image_outputs": {"gray": "G"}, "output_dtypes": {"gray": "float16"}},
        "output_dtypes: 'gray' is an image, of image_outputs",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_image_is_refused(case: str, tmp_path: Path) -> None:
    options, message = REFUSED[case]
    palettizer = KMeansPalettizer(Painting().eval())
    palettizer.prepare((X,))
    with pytest.raises(BackendError, match=message):
        palettizer.export(
            tmp_path / "m.mlpackage", (X,), backend="coreml", backend_options=options
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_other_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginOptionsError, match="image_outputs"):
        exported(tmp_path / "m.mlpackage", image_outputs={"gray": "CMYK"})
