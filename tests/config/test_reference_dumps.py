"""Configs that coreai-opt 0.4.0 writes load here where they ask for what happens here too.

`reference_dumps.json` holds what its ``to_dict`` gives for a config each, classes and dtypes as
their text.
"""

import json
from pathlib import Path

import pytest
import torch

from palette_core import KMeansPalettizerConfig, PalettizationSpec, VectorKMeansConfig
from palette_core.config.spec import QuantizationSpec
from palette_core.errors import ConfigError

DUMPS = json.loads((Path(__file__).parent / "reference_dumps.json").read_text())
ROOT = "kmeans_palettization_config"


def load(name: str) -> KMeansPalettizerConfig:
    return KMeansPalettizerConfig.from_dict(DUMPS[name])


@pytest.mark.parametrize("name", sorted(DUMPS))
def test_what_the_reference_writes_loads(name):
    config = load(name)
    assert KMeansPalettizerConfig.from_dict(config.to_dict()) == config
    assert "training_strategy_spec" not in config.to_yaml()


def test_what_loads_means_what_was_written():
    assert load("default") == KMeansPalettizerConfig()
    assert load("skip") == KMeansPalettizerConfig(module_name_configs={"2": None})
    assert load("skiptype") == KMeansPalettizerConfig().without(torch.nn.BatchNorm2d)
    assert load("preset_w4") == KMeansPalettizerConfig.presets.w4()
    spec = load("lut_uint8_symmetric_with_clipping").global_config.op_state_spec["weight"]
    assert spec is not None
    assert spec.lut_qspec == QuantizationSpec(dtype=torch.uint8, qscheme="symmetric_with_clipping")
    vectors = VectorKMeansConfig(n_local_trials=3, n_init=2, max_iter=10, tol=0)
    assert load("pairs2").global_config.vector_kmeans_config == vectors


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("qformulation", "minval"),
        ("fake_quantize_cls", "<class 'mine.FakeQuantize'>"),
        ("qparam_calculator_cls", "GlobalMinMaxQParamsCalculator"),
        ("range_calculator_cls", "moving_average"),
        ("float_range", [0, 1]),
        ("n_bits", 4),
        ("target_dtype", "uint8"),
        ("_quant_range", [0, 15]),
        ("quant_min", -8),
        ("quant_max", "many"),
    ],
)
def test_other_tables_than_ours_are_refused_by_name(field, value):
    data = json.loads(json.dumps(DUMPS["lut_int8_symmetric"]))
    data[ROOT]["global_config"]["op_state_spec"]["weight"]["lut_qspec"][field] = value
    with pytest.raises(ConfigError, match=rf"lut_qspec\.{field}: QuantizationSpec has no {field}"):
        KMeansPalettizerConfig.from_dict(data)


def test_fields_of_the_reference_are_accepted_in_python_too():
    class _DefaultFakeQuantizeImpl: ...

    spec = QuantizationSpec(fake_quantize_cls=_DefaultFakeQuantizeImpl, quant_max=127)
    assert spec == QuantizationSpec()
    with pytest.raises(ValueError, match="did you mean 'training_strategy'"):
        PalettizationSpec(training_strategy_spec={"type": "mine"})
