"""The size of groups in which activations are rounded to 8 bits, as the file tells it."""

from __future__ import annotations

from itertools import pairwise

import openvino as ov
import openvino_support as support
import pytest
import torch
from torch import nn

from palette_core import PalettizationSpec
from palette_core.errors import BackendError, PluginOptionsError

PROPERTY = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
INT8 = {"dtype": "int8"}
X = torch.randn(4, 192, generator=torch.Generator().manual_seed(1))


def model_of(*widths: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(*layers).eval()


def exported(path, size, model=None, lut_qspec=INT8, **options):
    model = model_of(192, 96, 8) if model is None else model
    spec = PalettizationSpec(n_bits=4, lut_qspec=lut_qspec)
    options = {"activation_group_size": size, **options}
    inputs = (X[:, : model[0].in_features],)
    return model, support.exported(model, inputs, path, spec, backend_options=options)


def off(path, model, **settings) -> float:
    """Return how far outputs are from the model's when activations are rounded as told."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1", **settings}
    found = ov.Core().compile_model(path, "CPU", settings)([X.numpy()])[0]
    with torch.no_grad():
        wanted = model(X)
    return float((torch.from_numpy(found) - wanted).square().mean().sqrt() / wanted.std())


def told(path, **settings) -> int:
    return ov.Core().compile_model(path, "CPU", settings).get_property(PROPERTY)


def test_the_runtime_reads_the_size_from_the_file_and_can_be_told_otherwise(tmp_path):
    _, path = exported(tmp_path / "m.xml", 48)
    assert ov.Core().read_model(path).get_rt_info(["runtime_options", PROPERTY]).value == "48"
    assert told(path) == 48
    assert told(path, **{PROPERTY: "0"}) == 0


def test_nothing_is_told_unless_it_is_asked_for(tmp_path):
    _, path = exported(tmp_path / "m.xml", None)
    assert not ov.Core().read_model(path).has_rt_info(["runtime_options", PROPERTY])
    assert told(path) == 32


def test_larger_groups_round_more_and_none_not_at_all(tmp_path):
    found = {}
    for size in (0, 16, 96):
        model, path = exported(tmp_path / f"{size}.xml", size)
        found[size] = off(path, model)
        assert off(path, model, **{PROPERTY: "0"}) < 1e-5
    assert found[0] < 1e-5
    if found[16] < 1e-5:
        pytest.skip("this processor does not compute in 8 bits")
    assert found[16] < found[96] < 0.03


def test_weights_with_zero_points_count_as_well(tmp_path):
    spec = {"dtype": "uint8", "qscheme": "asymmetric"}
    with pytest.raises(BackendError, match=r"does not divide the inputs of 1\.weight \(96\)"):
        exported(tmp_path / "m.xml", 64, lut_qspec=spec)
    _, path = exported(tmp_path / "m.xml", 32, lut_qspec=spec)
    assert told(path) == 32


@pytest.mark.parametrize(
    ("size", "widths", "message"),
    [
        (64, (192, 96, 8), r"inputs of 1\.weight \(96\); of all layers divide 16, 32, 48, 96$"),
        (160, (192, 96, 8), r"inputs of 0\.weight \(192\), 1\.weight \(96\); of all layers"),
        (16, (40, 24), r"inputs of 0\.weight \(40\); nothing would"),
    ],
)
def test_groups_that_do_not_divide_are_refused(size, widths, message, tmp_path):
    with pytest.raises(BackendError, match=message):
        exported(tmp_path / "m.xml", size, model_of(*widths))
    assert not list(tmp_path.iterdir())


def test_without_tables_of_integers_the_option_is_refused(tmp_path):
    with pytest.raises(BackendError, match="activation_group_size=32: no linear layer"):
        exported(tmp_path / "m.xml", 32, lut_qspec=None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [-16, 8, 33])
def test_sizes_that_the_runtime_would_not_take_are_refused(size, tmp_path):
    with pytest.raises(PluginOptionsError, match="activation_group_size"):
        exported(tmp_path / "m.xml", size)
