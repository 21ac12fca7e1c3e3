"""Palettized tensors against decoding by plain loops."""

from __future__ import annotations

import copy
import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palette_core.tensors import codebook as codebook_module
from palette_core.tensors.codebook import Codebook, QuantizedLut
from palette_core.tensors.layout import BlockLayout
from palette_core.tensors.packing import unpack_indices
from palette_core.tensors.palettized import PalettizedTensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
QUANTIZED = (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2)


@st.composite
def tensors(draw: st.DrawFn) -> PalettizedTensor:
    """Palettized tensors with arbitrary parts, not made by any clusterer."""
    rank = draw(st.integers(1, 4))
    axis = draw(st.integers(0, rank - 1))
    dim = draw(st.integers(1, 3))
    n_bits = draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    grid = [draw(st.integers(1, 2)) for _ in range(rank)]
    index_shape = [g * draw(st.integers(1, 3)) for g in grid]
    shape = [s * dim if i == axis else s for i, s in enumerate(index_shape)]
    dtype = draw(st.sampled_from(FLOATS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    indices = torch.randint(0, 2**n_bits, index_shape, dtype=torch.uint8, generator=generator)
    lut = torch.randn((*grid, 2**n_bits, dim), generator=generator)
    scale = None
    if draw(st.booleans()):
        channels = [s if i == 0 else 1 for i, s in enumerate(shape)]
        scale = torch.rand(channels, generator=generator).to(dtype)
    kind = draw(st.sampled_from([None, *QUANTIZED]))
    if kind is None:
        return PalettizedTensor(indices, lut.to(dtype), n_bits, axis, dtype, scale=scale)
    entries = (lut * 30).to(kind)
    lut_scale = torch.rand((*grid, 1, 1), generator=generator)
    zero = None
    if not kind.is_floating_point and draw(st.booleans()):
        zero = torch.randint(0, 100, (*grid, 1, 1), generator=generator).to(kind)
    return PalettizedTensor(indices, entries, n_bits, axis, dtype, lut_scale, zero, scale)


def decoded_by_loops(tensor: PalettizedTensor) -> torch.Tensor:
    """Every element on its own: entry, minus zero point, times scale, cast, times channel scale."""
    out = torch.empty(tensor.shape, dtype=tensor.dtype)
    blocks = [s // g for s, g in zip(tensor.shape, tensor.lut.shape[:-2], strict=True)]
    for at in itertools.product(*map(range, tensor.shape)):
        cell = tuple(i // b for i, b in zip(at, blocks, strict=True))
        index_at = list(at)
        index_at[tensor.axis], element = divmod(at[tensor.axis], tensor.lut.shape[-1])
        entry = int(tensor.indices[tuple(index_at)])
        value = tensor.lut[cell][entry, element]
        if tensor.lut_scale is not None:
            value = value.float()
            if tensor.lut_zero_point is not None:
                value = value - tensor.lut_zero_point[cell].float().reshape(())
            value = value * tensor.lut_scale[cell].reshape(())
        value = value.to(tensor.dtype)
        if tensor.scale is not None:
            value = value * tensor.scale[(at[0], *[0] * (len(at) - 1))]
        out[at] = value
    return out


@given(tensors())
def test_decode_is_what_loops_make(tensor: PalettizedTensor) -> None:
    tensor.check()
    decoded = tensor.decode()
    assert decoded.dtype is tensor.dtype
    assert tuple(decoded.shape) == tensor.shape
    assert torch.equal(decoded, decoded_by_loops(tensor))


@given(tensors())
def test_packed_indices_unpack_to_the_indices(tensor: PalettizedTensor) -> None:
    flat = unpack_indices(tensor.packed_indices(), tensor.n_bits, tensor.indices.numel())
    assert torch.equal(flat.reshape(tensor.indices.shape), tensor.indices)


@given(tensors())
def test_codebook_and_back_is_the_same_weight(tensor: PalettizedTensor) -> None:
    codebook = tensor.codebook()
    again = PalettizedTensor.from_codebook(
        codebook, tensor.layout, n_bits=tensor.n_bits, dtype=tensor.dtype, scale=tensor.scale
    )
    assert torch.equal(again.indices, tensor.indices)
    assert torch.equal(again.decode(), tensor.decode())


@given(tensors())
def test_pickles_and_copies_are_equal(tensor: PalettizedTensor) -> None:
    for other in (pickle.loads(pickle.dumps(tensor)), copy.deepcopy(tensor)):
        assert other.lut.dtype is tensor.lut.dtype
        assert torch.equal(other.decode(), tensor.decode())


def test_blocks_decode_in_chunks_without_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = BlockLayout((12, 5), (2, 5))
    codebook = Codebook(torch.randn(6, 4, 1), torch.randint(0, 4, (6, 10), dtype=torch.uint8))
    tensor = PalettizedTensor.from_codebook(codebook, layout, n_bits=2, dtype=torch.float32)
    whole = tensor.decode()
    monkeypatch.setattr(codebook_module, "_DECODE_CHUNK", 25)
    assert torch.equal(tensor.decode(), whole)
    assert torch.equal(whole, decoded_by_loops(tensor))


def test_from_codebook_keeps_quantized_entries_and_casts_the_rest() -> None:
    values = torch.tensor([[[-4], [5]], [[0], [127]]], dtype=torch.int8)
    quantized = QuantizedLut(values, torch.tensor([0.5, 2.0]).reshape(2, 1, 1))
    codes = torch.tensor([[0, 1], [1, 0]], dtype=torch.uint8)
    codebook = Codebook(quantized.dequantize(), codes, quantized)
    layout = BlockLayout((4, 1), (2, 1))
    tensor = PalettizedTensor.from_codebook(codebook, layout, n_bits=1, dtype=torch.float16)
    assert tensor.lut.dtype is torch.int8
    assert tensor.decode().tolist() == [[-2.0], [2.5], [254.0], [0.0]]
    assert tensor.size_in_bits() == 4 * 1 + 4 * 8 + 2 * 32
    assert tensor.dense_size_in_bits() == 4 * 16


def test_zero_points_are_taken_off_before_scaling() -> None:
    lut = QuantizedLut(
        torch.tensor([[[0], [255]]], dtype=torch.uint8),
        torch.full((1, 1, 1), 0.5),
        torch.full((1, 1, 1), 100, dtype=torch.uint8),
    )
    np.testing.assert_array_equal(lut.dequantize().flatten().numpy(), [-50.0, 77.5])


def _whole() -> PalettizedTensor:
    return PalettizedTensor(
        torch.zeros(4, 6, dtype=torch.uint8),
        torch.zeros(2, 1, 4, 1, dtype=torch.int8),
        2, 0, torch.float32,
        torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1, dtype=torch.int8), torch.ones(4, 1),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axis": 2}, "axis 2 does not exist"),
        ({"n_bits": 3}, "lut has shape"),
        ({"lut": torch.zeros(4, 1, dtype=torch.int8)}, "lut has shape"),
        ({"lut": torch.zeros(3, 1, 4, 1, dtype=torch.int8)}, "does not divide"),
        ({"lut": torch.zeros(2, 1, 4, 0, dtype=torch.int8)}, "lut has shape"),
        ({"dtype": torch.int32}, "for a weight of torch.int32"),
        ({"lut_scale": None}, "has no scale"),
        ({"lut_scale": torch.ones(1)}, "lut_scale has shape"),
        ({"lut_zero_point": torch.zeros(2, 1, 1, dtype=torch.int8)}, "lut_zero_point has shape"),
        ({"lut_zero_point": torch.zeros(2, 1, 1, 1)}, "lut_zero_point is torch.float32"),
        ({"scale": torch.ones(4, 1).double()}, "scale is torch.float64"),
        ({"scale": torch.ones(3, 1)}, "extents that divide"),
        ({"scale": torch.ones(4)}, "extents that divide"),
    ],
)
def test_check_names_the_part_that_does_not_fit(change: dict[str, object], message: str) -> None:
    _whole().check()
    with pytest.raises(ValueError, match=message):
        replace(_whole(), **change).check()
