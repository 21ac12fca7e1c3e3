"""Moments that cannot be used: what is found by one look at a sum, beside each value."""

import pytest
import torch

from palette_core.tensors import BlockLayout
from palette_core.tensors.moments import InputMoments


def obstacle(hessian):
    return InputMoments(hessian, BlockLayout((2, 3), (2, 3)), 5).obstacle()


@pytest.mark.parametrize("shape", [(1, 3, 3), (1, 3)])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_value_that_is_not_finite_is_found(shape, bad):
    for place in range(3):
        hessian = torch.ones(shape)
        hessian.view(-1)[place] = bad
        assert "NaN or infinite" in obstacle(hessian)


def test_infinities_that_cancel_are_found():
    hessian = torch.ones(1, 3, 3)
    hessian[0, 0, 1], hessian[0, 1, 0] = torch.inf, -torch.inf
    assert "NaN or infinite" in obstacle(hessian)


@pytest.mark.parametrize("large", [3e38, 1e30, 1.0])
def test_finite_values_whose_sum_is_not_are_none(large):
    assert obstacle(torch.full((1, 3, 3), large)) is None
