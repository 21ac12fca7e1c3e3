"""Tensors found and exchanged in nested values."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from types import MappingProxyType

import pytest
import torch

from palette_core._common.pytrees import floating, mapped, tensors

Pair = namedtuple("Pair", "first second")
A, B, N = torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([3])


@pytest.mark.parametrize(
    "value",
    [
        (A, N, B),
        [A, [N, (B,)]],
        {"a": A, "n": None, "m": N, "b": B},
        OrderedDict(a=Pair(A, N), b=B),
        UserDict(a=A, n=UserDict(n=N, b=B)),
        MappingProxyType({"a": (A, N), "b": [B]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_tensors_are_found_in_order(value):
    assert [id(x) for x in tensors(value)] == [id(A), id(N), id(B)]
    assert [id(x) for x in floating(value)] == [id(A), id(B)]


@pytest.mark.parametrize("value", [None, 3, "text", [], {}, (1.5, "a")])
def test_nothing_is_found_where_there_is_nothing(value):
    assert list(tensors(value)) == []


def test_all_but_tensors_stays():
    own = UserDict(a=A)
    found = mapped(lambda x: x + 1, {"p": Pair(A, "text"), "own": own, "n": [N, 2]})
    assert found == {"p": Pair(A + 1, "text"), "own": own, "n": [N + 1, 2]}
    assert found["own"] is own
    assert found["own"]["a"] is A
