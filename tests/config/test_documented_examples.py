"""The documented examples, in Python and in YAML, mean what the documentation says."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from palette_core.config import (
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    OpKMeansPalettizerConfig,
)
from palette_core.spec import (
    PalettizationSpec,
    PerGroupedChannelGranularity,
    PerTensorGranularity,
    QuantizationSpec,
    default_weight_palettization_spec,
)

LINEAR, CONV = "torch.nn.modules.linear.Linear", "torch.nn.modules.conv.Conv2d"


def test_specs() -> None:
    assert default_weight_palettization_spec().n_entries == 16
    grouped = PalettizationSpec(
        n_bits=2, granularity=PerGroupedChannelGranularity(axis=0, group_size=8)
    )
    assert grouped.n_entries == 4
    quantized = PalettizationSpec(
        n_bits=4, lut_qspec=QuantizationSpec(dtype=torch.int8, qscheme="symmetric")
    )
    assert quantized.lut_qspec == QuantizationSpec(dtype="int8")
    assert PalettizationSpec(n_bits=4, cluster_dim=2).cluster_dim == 2


def test_module_config_with_custom_settings() -> None:
    config = ModuleKMeansPalettizerConfig(
        op_state_spec={"weight": PalettizationSpec(n_bits=2)},
        enable_fast_kmeans_mode=False,
        rounding_precision=6,
    )
    assert list(config.op_state_spec) == ["weight"]
    assert (config.enable_fast_kmeans_mode, config.rounding_precision) == (False, 6)


def test_op_config_without_palettization() -> None:
    assert OpKMeansPalettizerConfig(op_state_spec=None).op_state_spec == {"*": None}


def test_four_bits_everywhere_and_eight_in_linear_layers() -> None:
    config = KMeansPalettizerConfig.presets.w4()
    config.set_module_type(nn.Linear, ModuleKMeansPalettizerConfig.presets.w8())
    chained = KMeansPalettizerConfig.presets.w4().set_module_type(
        nn.Linear, ModuleKMeansPalettizerConfig.presets.w8()
    )
    assert config == chained
    from_yaml = KMeansPalettizerConfig.from_yaml(
        io.StringIO("""
# yaml
kmeans_palettization_config:
  global_config:
    op_state_spec:
      weight:
        n_bits: 4
        granularity: { type: per_grouped_channel, axis: 0, group_size: 16 }
  module_type_configs:
    torch.nn.modules.linear.Linear:
      op_state_spec:
        weight:
          n_bits: 8
          granularity: { type: per_tensor }
""")
    )
    for one, other in (
        (from_yaml.global_config, config.global_config),
        (from_yaml.module_type_configs[LINEAR], config.module_type_configs[LINEAR]),
    ):
        assert one.op_state_spec == {"weight": other.op_state_spec["weight"]}


@pytest.mark.parametrize("linear", [LINEAR, "torch.nn.Linear"])
def test_four_bits_in_convolutions_and_eight_in_linear_layers_only(linear: str) -> None:
    config = KMeansPalettizerConfig(
        module_type_configs={
            linear: ModuleKMeansPalettizerConfig(
                op_state_spec={"weight": PalettizationSpec(n_bits=8)},
            ),
            "torch.nn.modules.conv.Conv2d": ModuleKMeansPalettizerConfig(
                op_state_spec={"weight": PalettizationSpec(n_bits=4)},
            ),
        },
    )
    assert config.global_config.is_disabled
    assert list(config.module_type_configs) == [LINEAR, CONV]
    text = f"""
kmeans_palettization_config:
  module_type_configs:
    {linear}:
      op_state_spec:
        weight:
          n_bits: 8
          granularity: {{ type: per_tensor }}
    torch.nn.modules.conv.Conv2d:
      op_state_spec:
        weight:
          n_bits: 4
          granularity: {{ type: per_tensor }}
"""
    assert KMeansPalettizerConfig.from_yaml(io.StringIO(text)) == config
    spec = config.module_type_configs[CONV].op_state_spec["weight"]
    assert spec is not None
    assert spec.granularity == PerTensorGranularity()


def test_documented_op_type_names() -> None:
    op = OpKMeansPalettizerConfig(op_state_spec={"weight": PalettizationSpec(n_bits=6)})
    config = ModuleKMeansPalettizerConfig(
        op_type_config={"aten.linear.default": op, "aten.conv2d.default": None}
    )
    assert config.op_type_config == {"linear": op, "conv2d": OpKMeansPalettizerConfig.disabled()}
