"""What the reference made with channel scales comes back from ours in every bit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn


@pytest.mark.peer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "case",
    [(4, 1, None, False), (4, 1, 32, False), (4, 2, None, False), (4, 1, None, True)],
    ids=str,
)
def test_a_palettized_weight_is_palettized_without_loss(case, dtype) -> None:
    from coreai_opt.quantization.spec import QuantizationSpec as TheirTable
    from peer_libraries import OURS, THEIRS

    from palette_core import QuantizationSpec

    bits, dim, group, integers = case

    def palettized(library: SimpleNamespace, table: type, weight: Tensor) -> Tensor:
        layer = nn.Linear(128, 64, bias=False, dtype=dtype)
        layer.weight = nn.Parameter(weight.clone())
        spec = {"n_bits": bits, "cluster_dim": dim, "enable_per_channel_scale": True}
        if group is not None:
            spec["granularity"] = library.Grouped(axis=0, group_size=group)
        if integers:
            spec["lut_qspec"] = table(dtype=torch.int8)
        module = library.ModuleConfig(
            op_state_spec={"weight": library.Spec(**spec)}, enable_fast_kmeans_mode=dim == 1
        )
        palettizer = library.Palettizer(nn.Sequential(layer), library.Config(global_config=module))
        return palettizer.prepare((torch.zeros(1, 128, dtype=dtype),))[0].weight.detach().clone()

    torch.manual_seed(0)
    dense = (torch.randn(64, 128) * torch.rand(64, 1)).to(dtype)
    made = palettized(THEIRS, TheirTable, dense)
    assert not torch.equal(made, dense)
    assert torch.equal(palettized(OURS, QuantizationSpec, made), made)
