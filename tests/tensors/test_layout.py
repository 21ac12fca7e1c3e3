"""Layouts against plain loops over every element."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palette_core.errors import IncompatibleShapeError
from palette_core.tensors.layout import BlockLayout


@st.composite
def layouts(draw: st.DrawFn) -> BlockLayout:
    rank = draw(st.integers(1, 5))
    vector_axis = draw(st.integers(0, rank - 1))
    dim = draw(st.integers(1, 3))
    shape, block = [], []
    for axis in range(rank):
        step = draw(st.integers(1, 3)) * (dim if axis == vector_axis else 1)
        block.append(step)
        shape.append(step * draw(st.integers(1, 3)))
    return BlockLayout(tuple(shape), tuple(block), dim, vector_axis)


def by_loops(layout: BlockLayout, weight: np.ndarray) -> np.ndarray:
    """Points ``[B, N, D]``, element by element, from the module's description."""
    grid = [s // b for s, b in zip(layout.shape, layout.block, strict=True)]
    steps = [
        b // layout.cluster_dim if axis == layout.vector_axis else b
        for axis, b in enumerate(layout.block)
    ]
    blocks = []
    for corner in itertools.product(*map(range, grid)):
        points = []
        for inside in itertools.product(*map(range, steps)):
            point = []
            for d in range(layout.cluster_dim):
                at = [
                    c * b + (i * layout.cluster_dim + d if axis == layout.vector_axis else i)
                    for axis, (c, b, i) in enumerate(zip(corner, layout.block, inside, strict=True))
                ]
                point.append(weight[tuple(at)])
            points.append(point)
        blocks.append(points)
    return np.array(blocks)


@given(layouts())
def test_split_is_what_loops_make(layout: BlockLayout) -> None:
    weight = np.arange(math.prod(layout.shape)).reshape(layout.shape)
    points = layout.split(torch.from_numpy(weight))
    assert points.shape == (layout.n_blocks, layout.points_per_block, layout.cluster_dim)
    np.testing.assert_array_equal(points.numpy(), by_loops(layout, weight))


@given(layouts())
def test_merge_is_the_exact_inverse_of_split(layout: BlockLayout) -> None:
    weight = torch.arange(math.prod(layout.shape)).reshape(layout.shape)
    assert torch.equal(layout.merge(layout.split(weight)), weight)
    indices = torch.arange(math.prod(layout.index_shape)).reshape(layout.index_shape)
    codes = layout.split_indices(indices)
    assert codes.shape == (layout.n_blocks, layout.points_per_block)
    assert torch.equal(layout.merge_codes(codes), indices)


@given(layouts())
def test_index_and_point_of_a_vector_are_at_the_same_place(layout: BlockLayout) -> None:
    weight = torch.arange(math.prod(layout.shape)).reshape(layout.shape)
    first = weight[
        tuple(
            slice(None, None, layout.cluster_dim) if axis == layout.vector_axis else slice(None)
            for axis in range(len(layout.shape))
        )
    ]
    assert torch.equal(layout.split_indices(first), layout.split(weight)[..., 0])


@given(layouts(), st.randoms())
def test_strides_of_the_weight_do_not_matter(layout: BlockLayout, random: object) -> None:
    order = list(range(len(layout.shape)))
    random.shuffle(order)  # type: ignore[attr-defined]
    weight = torch.arange(math.prod(layout.shape)).reshape(layout.shape)
    strided = weight.permute(order).contiguous().permute(np.argsort(order).tolist())
    assert torch.equal(layout.split(strided), layout.split(weight))


def test_lut_shape_has_the_rank_of_the_weight_plus_two() -> None:
    layout = BlockLayout((8, 6, 3), (4, 6, 3), 2, 0)
    assert layout.lut_shape(16) == (2, 1, 1, 16, 2)
    assert layout.index_shape == (4, 6, 3)


@pytest.mark.parametrize(
    ("shape", "block", "dim", "axis", "message"),
    [
        ((), (), 1, 0, "nothing to palettize"),
        ((4, 0), (4, 1), 1, 0, "nothing to palettize"),
        ((4, 4), (4,), 1, 0, "as many axes"),
        ((4, 6), (4, 4), 1, 0, "a block of 4 elements does not divide the 6 of axis 1"),
        ((4, 6), (0, 6), 1, 0, "a block of 0 elements"),
        ((4, 6), (4, 6), 1, 2, "vector axis 2 does not exist"),
        ((4, 6), (4, 6), 1, -1, "vector axis -1 does not exist"),
        ((6, 6), (3, 6), 2, 0, "cluster_dim 2 does not divide the 3 elements"),
    ],
)
def test_what_does_not_fit_is_refused(
    shape: tuple[int, ...], block: tuple[int, ...], dim: int, axis: int, message: str
) -> None:
    with pytest.raises(IncompatibleShapeError, match=message):
        BlockLayout(shape, block, dim, axis)
