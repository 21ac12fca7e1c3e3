"""Memory to work in: kept inside of a block, on one thread, and nowhere else."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import pytest
import torch

from palette_core._common.scratch import scratch, scratch_kept
from palette_core._common.threads import pool_of
from palette_core.builtins.clusterers.kmeans1d import floats


def place_of(array):
    return array.__array_interface__["data"][0]


def test_pieces_are_kept_by_name_and_grow():
    with scratch_kept():
        first = scratch("a", (4, 5), np.float64)
        assert (first.shape, first.dtype) == ((4, 5), np.float64)
        first[:] = 7.0
        other = scratch("b", (4, 5), np.float64)
        assert not np.shares_memory(first, other)
        again = scratch("a", (3, 2), np.int32)
        assert (again.shape, again.dtype) == ((3, 2), np.int32)
        assert place_of(again) == place_of(first)
        larger = scratch("a", (100, 100), np.float32)
        assert larger.shape == (100, 100)
        assert not np.shares_memory(first, larger)
        assert place_of(scratch("a", (10, 10), np.float32)) == place_of(larger)
        assert scratch("a", (2, 0), np.float32).size == 0


def test_nothing_is_kept_outside_nor_after_the_outermost_block():
    assert not np.shares_memory(scratch("a", (9,), np.uint8), scratch("a", (9,), np.uint8))
    found = []

    @scratch_kept()
    def fail():
        with scratch_kept():
            found.append(weakref.ref(scratch("a", (9,), np.uint8).base))
        assert found[0]() is not None
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert found[0]() is None


def test_threads_have_pieces_of_their_own_that_end_with_them():
    both = threading.Barrier(2, timeout=30)

    def take(_):
        both.wait()
        arrays = [scratch("a", (9,), np.uint8) for _ in range(2)]
        both.wait()
        return place_of(arrays[0]), place_of(arrays[1]), weakref.ref(arrays[0].base)

    with scratch_kept(), pytest.MonkeyPatch.context() as patch:
        mine = place_of(scratch("a", (9,), np.uint8))
        patch.setattr("palette_core._common.threads.thread_count", lambda: 2)
        with pool_of(2) as pool:
            (one, also_one, its), (two, _, _) = pool.map(take, range(2))
            assert one == also_one
            assert len({mine, one, two}) == 3
    assert its() is None


def test_blocks_come_out_alike_in_memory_that_others_have_used(monkeypatch):
    monkeypatch.setattr(floats, "is_compiled", lambda _: True)
    normal = torch.randn(3, 1, 20_000, generator=torch.Generator().manual_seed(3))
    weights = torch.rand(1, 9_000, generator=torch.Generator().manual_seed(4))
    problems = [
        (normal[0], None, 16),
        (normal[1][:, :9_000] * 40, weights, 4),
        (normal[2][:, :15_000] * 1e-3, None, 64),
        (normal[0], None, 16),
    ]
    alone = [floats.fit_floats(points, w, k, 4) for points, w, k in problems]
    with scratch_kept():
        kept = [floats.fit_floats(points, w, k, 4) for points, w, k in problems]
    for (lut, codes), (its_lut, its_codes) in zip(alone, kept, strict=True):
        assert torch.equal(lut, its_lut)
        assert torch.equal(codes, its_codes)
