"""8-bit scalars with 8-bit tables: written without a table, and the same in every bit."""

from __future__ import annotations

import coreai_support as support
import numpy as np
import pytest
import torch
from torch import nn

from coreai_backend import read_weights, stored_weights
from palette_core import PalettizationSpec, QuantizationSpec

ROWS = {"type": "per_grouped_channel", "axis": 0, "group_size": 8}
SPECS = {
    "int8": {"lut_qspec": QuantizationSpec()},
    "uint8": {
        "lut_qspec": QuantizationSpec(dtype="uint8", qscheme="asymmetric"),
        "granularity": ROWS,
    },
    "e4m3": {
        "lut_qspec": QuantizationSpec(dtype="float8_e4m3fn"),
        "enable_per_channel_scale": True,
    },
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_there_is_no_table_and_no_other_bit(name, dtype, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32)).to(dtype).eval()
    x = torch.linspace(-1, 1, 192).reshape(3, 64).to(dtype)
    spec = PalettizationSpec(n_bits=8, **SPECS[name])
    path = support.exported(model, (x,), tmp_path / "m.aimodel", spec)
    kinds, operations = support.summary(path)
    assert "lut_to_dense" not in operations
    stored = support.palettes(model)["0.weight"].lut.dtype
    names = {torch.int8: "Int8", torch.uint8: "UInt8", torch.float8_e4m3fn: "Float8E4M3FN"}
    assert kinds[names[stored]] >= 64 * 32
    wanted = support.palettes(model)["0.weight"].decode()
    assert support.same_values(read_weights(path)["0.weight"], wanted)
    (weight,) = stored_weights(path)
    assert weight.n_bits == 8
    assert weight.indices.shape == (32, 64)
    if dtype is torch.float32:  # in 16 bits the runtime rounds more coarsely than torch
        (got,) = support.run_file(path, x)
        assert np.allclose(got, model(x).detach().numpy(), atol=1e-6)


def test_vectors_and_fewer_bits_keep_their_tables(tmp_path):
    for spec in (
        PalettizationSpec(n_bits=6, lut_qspec=QuantizationSpec()),
        PalettizationSpec(n_bits=8, cluster_dim=2, lut_qspec=QuantizationSpec()),
        PalettizationSpec(n_bits=8),
    ):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32)).eval()
        path = support.exported(model, (torch.zeros(1, 64),), tmp_path / "m.aimodel", spec)
        assert support.summary(path)[1]["lut_to_dense"] == 1
