"""Garbage in cycles is looked for after a block, and as before it."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from palette_core import KMeansPalettizer
from palette_core._common.collecting import collecting_later


@pytest.fixture(params=[True, False])
def enabled(request):
    before = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if before else gc.disable)()


def test_looks_are_put_off_and_taken_up_again(enabled):
    with pytest.raises(KeyError), collecting_later():
        raise KeyError(gc.isenabled())
    assert gc.isenabled() is enabled
    with collecting_later():
        with collecting_later():
            pass
        assert not gc.isenabled()
    assert gc.isenabled() is enabled


def test_a_model_is_traced_without_looks(enabled):
    seen = []

    class Looking(nn.Linear):
        def forward(self, x):
            seen.append(gc.isenabled())
            return super().forward(x)

    model = Looking(8, 8)
    KMeansPalettizer(model).prepare(torch.ones(1, 8))
    assert gc.isenabled() is enabled
    model(torch.ones(1, 8))
    assert seen == [False, enabled]
