"""Products of one input by several weights, multiplied at once."""

from __future__ import annotations

import json

import numpy as np
import openvino as ov
import openvino_support as support
import pytest
import torch
from torch import Tensor, nn

from openvino_backend import read_weights
from palette_core import PalettizationSpec

X = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))


class Branches(nn.Module):
    """Three layers of one input, and one behind."""

    def __init__(self, *, bias: bool = False) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(16, 12, bias=bias), nn.Linear(16, 8, bias=bias)
        self.v, self.out = nn.Linear(16, 12, bias=bias), nn.Linear(12, 16, bias=bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k = torch.relu(self.q(x)), self.k(x)
        return self.out(q * self.v(x)), k, k.exp()


class Twice(Branches):
    """One weight has two uses, of which another input has one."""

    def __init__(self) -> None:
        super().__init__()
        del self.v

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.out(self.q(x)), self.k(x), self.q(x.exp())


def spec(*, channels: bool) -> PalettizationSpec:
    return PalettizationSpec(
        n_bits=4, lut_qspec={"dtype": "int8"}, enable_per_channel_scale=channels
    )


def products(path) -> list[list[int]]:
    """Return the shapes of weights that something is multiplied by, in a file."""
    nodes = ov.Core().read_model(path).get_ordered_ops()
    return sorted([*n.input_value(1).get_shape()] for n in nodes if n.get_type_name() == "MatMul")


@pytest.mark.parametrize("channels", [False, True])
def test_weights_of_one_input_are_one_product_and_every_weight_is_read_back(channels, tmp_path):
    torch.manual_seed(0)
    model = Branches().eval()
    path = support.exported(model, (X,), tmp_path / "model.xml", spec(channels=channels))
    assert products(path) == [[16, 12], [32, 16]]
    with torch.no_grad():
        assert support.difference(support.run_file(path, X), model(X)) < 1e-5
    wanted, found = support.palettes(model), read_weights(path)
    assert found.keys() == wanted.keys()
    for name, palette in wanted.items():
        # Both scales are multiplied beforehand, which rounds once more.
        np.testing.assert_allclose(found[name], palette.decode().numpy(), rtol=2.4e-7)
    facts = json.loads(ov.Core().read_model(path).get_rt_info(["palette_core", "weights"]).value)
    places = sorted(
        (facts[f"{n}.weight"]["first_row"], facts[f"{n}.weight"]["shape"]) for n in "qkv"
    )
    at = 0
    for first, (rows, _) in places:
        assert first == at
        at += rows
    assert len({facts[f"{name}.weight"]["layer"] for name in "qkv"}) == 1


@pytest.mark.parametrize(
    ("model", "given", "shapes"),
    [
        (Branches(bias=True), spec(channels=True), [[8, 16], [12, 16], [12, 16], [16, 12]]),
        (Branches(), PalettizationSpec(n_bits=4), [[8, 16], [12, 16], [12, 16], [16, 12]]),
        (Twice(), spec(channels=True), [[8, 16], [12, 16], [12, 16], [16, 12]]),
    ],
    ids=["with a bias", "of floats", "used twice"],
)
def test_others_stay_apart(model, given, shapes, tmp_path):
    path = support.exported(model.eval(), (X,), tmp_path / "model.xml", given)
    assert products(path) == shapes
    with torch.no_grad():
        assert support.difference(support.run_file(path, X), model(X)) < 1e-5


class Heads(nn.Module):
    """Queries, keys and values, cut into heads of ``width``, or of another one for values."""

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(16, 24, bias=False), nn.Linear(16, 8, bias=False)
        self.v, self.widths = nn.Linear(16, 16, bias=False), (width, width, values)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, places, _ = x.shape
        q, k, v = (
            layer(x).view(batch, places, -1, width).transpose(1, 2)
            for layer, width in zip((self.q, self.k, self.v), self.widths, strict=True)
        )
        return q.exp(), k, v * 2


@pytest.mark.parametrize(
    ("values", "batch", "cuts"), [(4, 1, 1), (2, 1, 3), (4, 3, 3)],
    ids=["as wide", "others", "two axes vary"],
)  # fmt: skip
def test_what_is_cut_into_heads_of_one_width_is_cut_as_a_whole(values, batch, cuts, tmp_path):
    model, x = Heads(4, values).eval(), torch.randn(batch, 5, 16)
    places = torch.export.Dim("places", min=1, max=64)
    shapes = ({1: places} | ({0: torch.export.Dim("batch", min=1, max=8)} if batch > 1 else {}),)
    path = support.exported(
        model, (x,), tmp_path / "model.xml", spec(channels=True), dynamic_shapes=shapes
    )
    assert products(path) == [[48, 16]]
    nodes = ov.Core().read_model(path).get_ordered_ops()
    after = nodes[[n.get_type_name() for n in nodes].index("MatMul") :]
    assert sum(n.get_type_name() == "Reshape" for n in after) == cuts
    for given in (x, torch.randn(batch, 1, 16), torch.randn(batch, 9, 16)):
        with torch.no_grad():
            assert support.difference(support.run_file(path, given), model(given)) < 1e-5


def test_names_of_outputs_stay(tmp_path):
    path = support.exported(
        Branches().eval(),
        (X,),
        tmp_path / "model.xml",
        spec(channels=True),
        backend_options={"output_names": ("a", "b", "c")},
    )
    model = ov.Core().read_model(path)
    assert [port.get_any_name() for port in model.outputs] == ["a", "b", "c"]
