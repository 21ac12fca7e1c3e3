"""Weights that tables can hold as they are: they come back bit for bit, judged by comparison."""

import numpy as np
import pytest
import torch

import palette_core as pc
from palette_core.engine.exact import ExactBlocks

ROWS = {"type": "per_grouped_channel", "axis": 0, "group_size": 8}
COLUMNS = {"type": "per_grouped_channel", "axis": 1, "group_size": 8}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = {
    "tensor": {"n_bits": 4},
    "one bit": {"n_bits": 1},
    "rows": {"n_bits": 3, "granularity": ROWS},
    "columns": {"n_bits": 2, "granularity": COLUMNS},
    "pairs": {"n_bits": 4, "cluster_dim": 2},
    "groups of pairs": {"n_bits": 3, "cluster_dim": 2, "granularity": ROWS},
}
TABLES = {
    "floats": None,
    "int8": pc.QuantizationSpec(dtype="int8"),
    "uint8": pc.QuantizationSpec(dtype="uint8", qscheme="asymmetric"),
    "e4m3": pc.QuantizationSpec(dtype="float8_e4m3fn"),
}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def palettized(weight, *, batches=None, path=None, **spec):
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    config = pc.KMeansPalettizerConfig(
        global_config=pc.ModuleKMeansPalettizerConfig(
            op_state_spec={"weight": pc.PalettizationSpec(**spec)},
            enable_fast_kmeans_mode=False,
        )
    )
    model = torch.nn.Sequential(layer)
    palettizer = pc.KMeansPalettizer(model, config)
    if batches is not None:
        palettizer.calibrate(batches)
    palettizer.prepare((torch.zeros(1, weight.shape[1], dtype=weight.dtype),), path)
    return model[0].weight.detach()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("table", TABLES)
def test_a_palettized_weight_palettizes_to_itself(dtype, table):
    for seed, (name, shape) in enumerate(SHAPES.items()):
        spec = {**shape, "lut_qspec": TABLES[table]}
        once = palettized(normal(32, 32, seed=seed).to(dtype), **spec)
        assert torch.equal(palettized(once, **spec), once), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_of_all_magnitudes_are_entries_of_their_own(dtype):
    values = torch.tensor([-3.0, -1e-3, -2.5e-7, 0.0, 6e-8, 1e-3, 1.0, 1.0078125]).to(dtype)
    weight = values[torch.randint(8, (16, 64), generator=torch.Generator().manual_seed(0))]
    for spec in ({"n_bits": 3}, {"n_bits": 3, "enable_per_channel_scale": True},
                 {"n_bits": 3, "granularity": ROWS, "scale_block_size": 32}):  # fmt: skip
        assert torch.equal(palettized(weight, **spec), weight), spec


@pytest.mark.parametrize("spec", [{"n_bits": 2}, {"n_bits": 2, "cluster_dim": 2}], ids=str)
def test_values_that_do_not_matter_are_kept_as_well(spec, tmp_path):
    weight = torch.tensor([-1.0, -1.0, -0.9, -0.9, 0.5, 0.5, 2.0, 2.0]).repeat(4, 2)
    path = tmp_path / "sensitivities.pt"
    torch.save({"0.weight": (weight > 0).float()}, path)
    assert torch.equal(palettized(weight, path=path, **spec), weight)


@pytest.mark.parametrize("algorithm", ["gptq", "lnq"])
def test_algorithms_of_outputs_take_them_too(algorithm):
    once = palettized(normal(16, 16), n_bits=3)
    batches = [(normal(32, 16, seed=1),)]
    for extra in ({}, {"lut_qspec": TABLES["int8"]}, {"enable_per_channel_scale": True}):
        spec = {"n_bits": 3, "algorithm": algorithm, **extra}
        again = palettized(once, batches=batches, **spec)
        if "lut_qspec" not in extra:
            assert torch.equal(again, once), spec
        # Its own result, too, if the table was rounded.
        assert torch.equal(palettized(again, batches=batches, **spec), again), spec


def test_a_block_that_is_exact_among_others_that_are_not():
    weight = normal(16, 32)
    weight[:8] = weight[:8].sign()
    for table in TABLES.values():
        found = palettized(weight, n_bits=2, granularity=ROWS, lut_qspec=table)
        assert torch.equal(found[:8], weight[:8])
        assert not torch.equal(found[8:], weight[8:])


def test_zeros_get_an_entry_or_the_blocks_are_not_exact():
    values = torch.tensor([-2.0, 1.0, 3.0, 5.0])
    weight = values[torch.randint(4, (8, 32), generator=torch.Generator().manual_seed(0))]
    pruned = weight * (torch.rand(8, 32, generator=torch.Generator().manual_seed(1)) < 0.5)
    found = palettized(pruned, n_bits=2, preserve_zero=True)
    assert bool((found[pruned == 0] == 0).all())
    assert not torch.equal(found, pruned)
    sparse = {"sparsity_detection_threshold": 0.1, "n_bits": 2}
    for spec in ({"preserve_zero": True, "n_bits": 3}, sparse):
        assert torch.equal(palettized(pruned, **spec), pruned), spec


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("count", [3, 40, 1000])
def test_exact_blocks_are_those_that_numpy_finds(dim, count):
    draw = torch.Generator().manual_seed(dim)
    levels = torch.randint(1, 4, (6, 1, 1), generator=draw)
    points = torch.randint(0, 9, (6, count, dim), generator=draw) % levels - 1.0
    points[0] = torch.randn(count, dim, generator=draw)
    found = ExactBlocks.of(points, 4)
    few = [b for b, x in enumerate(points) if len(np.unique(x.numpy(), axis=0)) <= 4]
    assert found is not None
    assert found.blocks.tolist() == few
    assert found.every == (len(few) == 6)
    assert torch.equal(found.codebook.decode(), points[few])
    for table, x in zip(found.codebook.lut, points[few], strict=True):
        distinct = np.unique(x.numpy(), axis=0)
        assert np.array_equal(table[: len(distinct)], distinct)
        assert bool((table[len(distinct) :] == table[len(distinct) - 1]).all())
