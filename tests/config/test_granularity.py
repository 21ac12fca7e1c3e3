"""Granularities: what one block spans, and what is refused."""

from __future__ import annotations

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from palette_core.config.granularity import (
    PerGroupedChannelGranularity,
    PerTensorGranularity,
    parse_granularity,
)
from palette_core.errors import IncompatibleShapeError
from palette_core.plugins import Granularity, GranularityEntry

SHAPES = st.lists(st.integers(1, 24), min_size=1, max_size=5).map(tuple)


@given(shape=SHAPES, default_axis=st.sampled_from([0, 1]))
def test_per_tensor_is_one_block_of_the_whole(shape: tuple[int, ...], default_axis: int) -> None:
    assert PerTensorGranularity().block_shape(shape, default_axis) == shape


@given(
    shape=SHAPES,
    axis=st.sampled_from([None, 0, 1]),
    default_axis=st.sampled_from([0, 1]),
    group_size=st.integers(1, 30),
)
def test_grouped_blocks_cut_one_axis_evenly_or_are_refused(
    shape: tuple[int, ...], axis: Literal[0, 1] | None, default_axis: int, group_size: int
) -> None:
    spec = PerGroupedChannelGranularity(axis=axis, group_size=group_size)
    cut = default_axis if axis is None else axis
    if cut >= len(shape) or shape[cut] % group_size:
        with pytest.raises(IncompatibleShapeError):
            spec.block_shape(shape, default_axis)
        return
    block = spec.block_shape(shape, default_axis)
    assert block[cut] == group_size
    assert [b for i, b in enumerate(block) if i != cut] == [
        s for i, s in enumerate(shape) if i != cut
    ]
    assert math.prod(shape) % math.prod(block) == 0


def test_message_names_group_size_axis_and_the_nearest_divisor() -> None:
    with pytest.raises(IncompatibleShapeError) as caught:
        PerGroupedChannelGranularity(axis=1, group_size=7).block_shape((4, 12), 0)
    message = str(caught.value)
    assert "group_size 7" in message
    assert "12 channels of axis 1" in message
    assert "nearest that does is 6" in message


def test_message_for_a_weight_without_that_axis() -> None:
    with pytest.raises(IncompatibleShapeError, match=r"axis 1 does not exist .*\(8,\).*per_tensor"):
        PerGroupedChannelGranularity(axis=1, group_size=2).block_shape((8,), 0)


@pytest.mark.parametrize("axis", [2, -1, "x"])
def test_axis_is_none_0_or_1(axis: object) -> None:
    with pytest.raises(ValidationError, match="0 or 1"):
        PerGroupedChannelGranularity(axis=axis, group_size=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("group_size", [0, -3, None, 2.5, "x"])
def test_group_size_is_a_positive_integer(group_size: object) -> None:
    with pytest.raises(ValidationError, match="group_size"):
        PerGroupedChannelGranularity(group_size=group_size)  # type: ignore[arg-type]


def test_group_size_is_required() -> None:
    with pytest.raises(ValidationError, match="Field required"):
        PerGroupedChannelGranularity()  # type: ignore[call-arg]


def test_per_tensor_has_no_axis() -> None:
    with pytest.raises(ValidationError, match="axis"):
        PerTensorGranularity(axis=0)  # type: ignore[arg-type]


def test_frozen_equal_and_hashed_by_value() -> None:
    one = PerGroupedChannelGranularity(axis=0, group_size=8)
    assert one == PerGroupedChannelGranularity(group_size=8, axis=0)
    assert len({one, PerGroupedChannelGranularity(axis=0, group_size=8)}) == 1
    assert one != PerGroupedChannelGranularity(axis=1, group_size=8)
    assert one != PerTensorGranularity()
    with pytest.raises(ValidationError, match="frozen"):
        one.group_size = 4  # type: ignore[misc]
    assert one.group_size == 8


def test_dump_has_type_axis_and_group_size() -> None:
    dumped = PerGroupedChannelGranularity(axis=0, group_size=8).model_dump()
    assert dumped == {"type": "per_grouped_channel", "axis": 0, "group_size": 8}
    assert parse_granularity(dumped) == PerGroupedChannelGranularity(axis=0, group_size=8)


def test_positional_arguments_and_subclasses_are_refused() -> None:
    with pytest.raises(TypeError):
        PerGroupedChannelGranularity(0, 8)  # type: ignore[misc]
    for final in (PerTensorGranularity, PerGroupedChannelGranularity):
        with pytest.raises(TypeError, match=f"cannot subclass {final.__name__}"):
            type("Mine", (final,), {})


def test_base_class_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Granularity(type="mine")  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, "missing 'type' key"),
        ({"axis": 0}, "missing 'type' key"),
        (7, "mapping with a 'type' key, got 7"),
        ("per_tenser", "'per_tenser'.*did you mean 'per_tensor'"),
        ("per_grouped_channel", "group_size"),
        (None, "got None"),
        ({"type": "per_tenser"}, "'per_tenser'.*did you mean 'per_tensor'"),
        ({"type": ["per_tensor"]}, r"is its name, got \['per_tensor'\]"),
        ({"type": "per_grouped_channel", "group_sise": 4}, "did you mean 'group_size'"),
        ({"type": "per_tensor", "group_size": 4}, "unknown field 'group_size'"),
    ],
)
def test_what_is_no_granularity(value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse_granularity(value)


def test_parsing_leaves_the_dictionary_alone_and_passes_objects_through() -> None:
    given_ = {"type": "per_grouped_channel", "group_size": 4}
    assert parse_granularity(given_) == PerGroupedChannelGranularity(group_size=4)
    assert given_ == {"type": "per_grouped_channel", "group_size": 4}
    same = PerTensorGranularity()
    assert parse_granularity(same) is same


class PerHalf(Granularity):
    """A granularity of somebody else: two blocks along the first axis."""

    type: Literal["per_half"] = "per_half"
    weights: list[float] = Field(default_factory=list)

    def block_shape(self, shape: tuple[int, ...], default_axis: int) -> tuple[int, ...]:
        return (shape[0] // 2, *shape[1:])


def test_a_granularity_of_a_third_party_parses_dumps_and_hashes(register) -> None:
    register(GranularityEntry(name="per_half", summary="halves", interface=1, model=PerHalf))
    parsed = parse_granularity({"type": "per_half", "weights": [0.5]})
    assert parsed == PerHalf(weights=[0.5])
    assert parse_granularity(parsed.model_dump()) == parsed
    assert hash(parsed) == hash(PerHalf(weights=[0.5]))
    assert parse_granularity({"type": "per_tensor"}) == PerTensorGranularity()
