"""What code written for the reference reads of configs, granularities and sizes."""

import copy
import pickle

import pytest
import torch
from torch import nn

from palette_core import (
    ExportBackend,
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    OpKMeansPalettizerConfig,
    PerGroupedChannelGranularity,
    PerTensorGranularity,
    bits_per_weight,
)
from palette_core.errors import IncompatibleShapeError


def test_configs_say_that_inputs_and_outputs_are_left_alone():
    for made in (
        ModuleKMeansPalettizerConfig(),
        ModuleKMeansPalettizerConfig(op_input_spec={"*": None}, module_output_spec=None),
        KMeansPalettizerConfig.presets.w4().global_config,
    ):
        assert made.op_input_spec == made.op_output_spec == {}
        assert made.module_input_spec == made.module_output_spec == {}
        assert "op_input_spec" not in made.model_dump()
    op = OpKMeansPalettizerConfig()
    assert op.op_input_spec == op.op_output_spec == {}
    op.op_input_spec = None
    with pytest.raises(ValueError, match="weight-only"):
        op.op_input_spec = {"0": {"n_bits": 4}}
    op.op_input_spec["0"] = 1
    assert op.op_input_spec == {}


def test_granularities_count_and_cut_blocks():
    weight = torch.arange(8 * 6.0).reshape(8, 6)
    assert PerTensorGranularity().num_blocks_to_cluster(weight) == 1
    assert PerTensorGranularity().get_blocks_to_cluster(weight)[0].equal(weight)
    rows = PerGroupedChannelGranularity(axis=0, group_size=4)
    columns = PerGroupedChannelGranularity(axis=1, group_size=2)
    assert (rows.num_blocks_to_cluster(weight), columns.num_blocks_to_cluster(weight)) == (2, 3)
    for got, right in zip(rows.get_blocks_to_cluster(weight), weight.split(4), strict=True):
        assert got.equal(right)
        assert got.data_ptr() == right.data_ptr()
    for got, right in zip(columns.get_blocks_to_cluster(weight), weight.split(2, 1), strict=True):
        assert got.equal(right)
    either = PerGroupedChannelGranularity(group_size=3)
    assert either.num_blocks_to_cluster(weight, default_axis=1) == 2
    with pytest.raises(IncompatibleShapeError, match="does not divide the 8 channels"):
        either.num_blocks_to_cluster(weight)
    with pytest.raises(IncompatibleShapeError, match="axis 1 does not exist"):
        columns.get_blocks_to_cluster(torch.ones(4))


def test_bits_per_weight_tells_what_it_is_made_of():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128, bias=False), nn.Sequential(nn.BatchNorm1d(128)))
    dense = bits_per_weight(model)
    assert dense.per_module_map["0"] == 32
    KMeansPalettizer(model).prepare((torch.ones(2, 64),))
    found = bits_per_weight(model)
    norm = 4 * 128 * 32 + 64  # and a count of batches
    assert (found.total_bits, found.total_weights) == (
        64 * 128 * 4 + 16 * 32 + norm,
        64 * 128 + 4 * 128 + 1,
    )
    assert found == found.bpw == found.total_bits / found.total_weights
    assert found.per_module_map == {"0": 4.0625, "1.0": norm / (4 * 128 + 1)}
    assert isinstance(found, float)
    assert f"{found:.1f}" == f"{found.bpw:.1f}"
    for again in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert again == found
        assert again.per_module_map == found.per_module_map
    root = nn.Linear(64, 128, bias=False)
    KMeansPalettizer(root).prepare((torch.ones(1, 64),))
    assert bits_per_weight(root).per_module_map == {"": 4.0625}


def test_former_names_of_backends():
    for name, now in (("MIL", "coreml"), ("MLIR", "coreai"), ("_TORCH", "torch")):
        with pytest.warns(DeprecationWarning, match="ExportBackend"):
            assert getattr(ExportBackend, name) == now
        with pytest.warns(DeprecationWarning, match="ExportBackend"):
            assert ExportBackend(name.lower()) is ExportBackend(now)
