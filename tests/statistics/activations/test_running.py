"""Products of inputs with themselves, of which half is made: against all of it in float64."""

import pytest
import torch

from palette_core.statistics.activations.running import Running


@pytest.mark.parametrize("size", [1, 63, 64, 65, 384, 385, 449, 513, 1000])
@pytest.mark.parametrize("lies", ["by vector", "by channel"])
def test_half_products_are_those_of_all(size, lies):
    x = torch.randn(2, size, 90, generator=torch.Generator().manual_seed(size))
    if lies == "by vector":
        x = x.mT.contiguous().mT
    found = []
    running = Running(found.append)
    running.add(x[:, :, :50], 0, 2)
    running.add(x[:, :, 50:], 0, 2)
    running.flush()
    (made,) = found
    truth = x.double() @ x.double().mT
    assert made.total.shape == truth.shape
    assert torch.equal(made.total, made.total.mT)
    assert (made.total - truth).abs().max() < 1e-4 * truth.abs().max()
