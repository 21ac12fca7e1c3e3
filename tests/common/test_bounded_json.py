"""JSON of anybody: what `json` reads, and nothing that is out of bounds."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palette_core._common.bounded_json import MAX_DEPTH, read_json

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip


@given(values, st.booleans())
def test_what_json_writes_is_read(value, as_bytes):
    text = json.dumps(value)
    assert read_json(text.encode() if as_bytes else text) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested more than 64 deep"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested more than 64 deep"),
        ("[1" + "0" * 400 + "]", "an integer of 401 digits"),
        ("1" * 5000, "an integer of 5000 digits"),
        ('{"a": 1, "b": 2, "a": 3}', "key 'a' is there twice"),
        ("[NaN]", "NaN is no number"),
        ("-Infinity", "-Infinity is no number"),
        ("1e999", "1e999 is too large"),
        (b"\xff", "decode"),
        ("{", "Expecting"),
        ("", "Expecting value"),
        ('"' + "x" * 64_000_001, "more than 64,000,000"),
    ],
)
def test_what_is_out_of_bounds_is_a_value_error(text, reason):
    with pytest.raises(ValueError, match=reason):
        read_json(text)


def test_brackets_in_texts_do_not_nest():
    text = json.dumps(['[{"' * 1000, "\\"])
    assert read_json(text) == json.loads(text)
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert read_json(deep) == json.loads(deep)
