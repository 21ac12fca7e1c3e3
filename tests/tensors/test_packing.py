"""Packed indices against numpy's own bit packing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palette_core.tensors import packing
from palette_core.tensors.packing import pack_indices, packed_size, unpack_indices

WIDTHS = range(1, 9)


def numpy_packed(indices: np.ndarray, n_bits: int) -> np.ndarray:
    bits = (indices.reshape(-1, 1) >> np.arange(n_bits)) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little")


@st.composite
def indices_and_width(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    n_bits = draw(st.sampled_from(WIDTHS))
    values = draw(st.lists(st.integers(0, 2**n_bits - 1), max_size=70))
    return np.array(values, dtype=np.uint8), n_bits


@given(indices_and_width())
def test_bytes_are_those_of_numpy_packbits(case: tuple[np.ndarray, int]) -> None:
    indices, n_bits = case
    packed = pack_indices(torch.from_numpy(indices), n_bits)
    expected = numpy_packed(indices, n_bits)
    assert packed.dtype is torch.uint8
    np.testing.assert_array_equal(packed.numpy(), expected)
    assert packed_size(len(indices), n_bits) == len(expected)
    np.testing.assert_array_equal(unpack_indices(packed, n_bits, len(indices)).numpy(), indices)


@pytest.mark.parametrize("n_bits", WIDTHS)
def test_long_streams_are_packed_in_chunks_without_seams(
    monkeypatch: pytest.MonkeyPatch, n_bits: int
) -> None:
    monkeypatch.setattr(packing, "_CHUNK", 3)
    indices = np.random.default_rng(n_bits).integers(0, 2**n_bits, 149, dtype=np.uint8)
    packed = pack_indices(torch.from_numpy(indices), n_bits)
    np.testing.assert_array_equal(packed.numpy(), numpy_packed(indices, n_bits))
    np.testing.assert_array_equal(unpack_indices(packed, n_bits, 149).numpy(), indices)


@pytest.mark.parametrize("n_bits", WIDTHS)
def test_strided_indices_pack_in_logical_order(n_bits: int) -> None:
    indices = np.random.default_rng(0).integers(0, 2**n_bits, (6, 5), dtype=np.uint8)
    packed = pack_indices(torch.from_numpy(indices).T, n_bits)
    np.testing.assert_array_equal(packed.numpy(), numpy_packed(indices.T.copy(), n_bits))


@pytest.mark.parametrize("n_bits", [3, 4, 8])
@pytest.mark.parametrize("bytes_off", [-1, 1])
def test_a_stream_of_the_wrong_length_is_refused(n_bits: int, bytes_off: int) -> None:
    packed = torch.zeros(packed_size(10, n_bits) + bytes_off, dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"10 indices of {n_bits} bits take"):
        unpack_indices(packed, n_bits, 10)


def test_eight_bits_are_a_copy_not_the_same_memory() -> None:
    indices = torch.arange(5, dtype=torch.uint8)
    packed = pack_indices(indices, 8)
    unpacked = unpack_indices(packed, 8, 5)
    indices.zero_()
    packed.zero_()
    assert unpacked.tolist() == [0, 1, 2, 3, 4]
