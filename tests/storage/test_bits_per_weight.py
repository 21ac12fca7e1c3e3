"""bits_per_weight, against counting by hand."""

from __future__ import annotations

import pytest
import torch
from palettizer_models import (
    INT8,
    TOKENS,
    UINT8,
    Tied,
    everything_prepared,
    mlp,
    prepared_mlp,
    weight_config,
)
from torch import nn

from palette_core import (
    KMeansPalettizer,
    PerGroupedChannelGranularity,
    bits_per_weight,
    load_checkpoint,
    save_checkpoint,
)

GROUPS = PerGroupedChannelGranularity(axis=0, group_size=16)
# Linear(64, 128) without bias: what the reference reports.
REFERENCE = {
    "4 bits": ({"n_bits": 4}, 4.0625),
    "groups of 16": ({"n_bits": 4, "granularity": GROUPS}, 4.5),
    "int8 tables": ({"n_bits": 4, "lut_qspec": INT8}, 4.0195),
    "uint8 tables, asymmetric": ({"n_bits": 4, "lut_qspec": UINT8}, 4.0205),
    "channel scale": ({"n_bits": 4, "enable_per_channel_scale": True}, 4.5625),
    "pairs": ({"n_bits": 4, "cluster_dim": 2, "fast": False}, 2.125),
    "8 bits": ({"n_bits": 8}, 9.0),
}


def finalized(palettizer: KMeansPalettizer) -> nn.Module:
    return palettizer.finalize(backend="packed")


@pytest.mark.parametrize(("spec", "number"), REFERENCE.values(), ids=REFERENCE.keys())
def test_numbers_of_the_reference_before_and_after_finalize(
    spec: dict[str, object], number: float
) -> None:
    torch.manual_seed(0)
    model = nn.Linear(64, 128, bias=False)
    palettizer = KMeansPalettizer(model, weight_config(**spec))
    assert bits_per_weight(model) == 32
    palettizer.prepare((torch.zeros(1, 64),))
    assert bits_per_weight(model) == pytest.approx(number, abs=5e-5)
    assert bits_per_weight(finalized(palettizer)) == pytest.approx(number, abs=5e-5)
    assert palettizer.report.bits_per_palettized_weight == pytest.approx(number, abs=2e-3)


def test_biases_and_buffers_count_at_full_width() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16))
    rest = 16 * 32 * 5 + 64  # bias, norm's weight and bias, two statistics, an int64 counter
    weights = 8 * 16
    assert bits_per_weight(model) == (weights * 32 + rest) / (weights + 81)
    palettizer = KMeansPalettizer(model, weight_config())
    palettizer.prepare((torch.zeros(2, 8),))
    expected = (weights * 2 + 4 * 32 + rest) / (weights + 81)
    assert bits_per_weight(model) == expected
    assert bits_per_weight(finalized(palettizer)) == expected


def test_tied_weights_count_once(tmp_path: object) -> None:
    palettizer = KMeansPalettizer(Tied(), weight_config())
    model = palettizer.prepare(TOKENS)
    expected = (128 * 2 + 64 * 2 + 2 * 4 * 32 + 8 * 32) / (128 + 64 + 8)
    assert bits_per_weight(model) == expected
    assert bits_per_weight(finalized(palettizer)) == expected
    path = save_checkpoint(model, tmp_path / "t")  # type: ignore[operator]
    assert bits_per_weight(load_checkpoint(path, Tied())) == expected


def test_half_precision_tables() -> None:
    palettizer, model = prepared_mlp(n_bits=4)
    model.half()
    expected = (192 * 4 + 2 * 16 * 16 + 20 * 16) / 212
    assert bits_per_weight(model) == expected
    assert bits_per_weight(finalized(palettizer)) == expected


def test_every_kind_of_layer_is_the_same_before_and_after() -> None:
    palettizer, model = everything_prepared(lut_qspec=UINT8, enable_per_channel_scale=True)
    before = bits_per_weight(model)
    assert before < 20
    assert bits_per_weight(finalized(palettizer)) == before


def test_weight_normed_layers_count_their_palette_only() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8, bias=False))
    palettizer = KMeansPalettizer(layer, weight_config())
    palettizer.prepare((torch.zeros(1, 8),))
    expected = (64 * 2 + 4 * 32) / 64
    assert bits_per_weight(layer) == expected
    assert bits_per_weight(finalized(palettizer)) == expected


def test_what_has_no_weights() -> None:
    with pytest.raises(ValueError, match="ReLU has no parameters or buffers"):
        bits_per_weight(nn.ReLU())
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got OrderedDict"):
        bits_per_weight(mlp().state_dict())  # type: ignore[arg-type]
