"""Buffers that a model writes to, at places and in numbers that the inputs say."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from export_rewrites import REWRITES, Dialect, rewritten, unfit

aten = torch.ops.aten
SIZE = 16
TOKENS = torch.export.Dim("tokens", min=1, max=8)


def by_index_copy(cache: Tensor, x: Tensor, places: Tensor) -> None:
    cache.index_copy_(2, places, x)


def by_index(cache: Tensor, x: Tensor, places: Tensor) -> None:
    cache[:, :, places] = x


def by_index_of_a_part(cache: Tensor, x: Tensor, places: Tensor) -> None:
    cache[0, :, places] = x[0]


def one_for_all(cache: Tensor, x: Tensor, places: Tensor) -> None:
    cache[:, :, places] = x[:, :, :1]


def from_the_end(cache: Tensor, x: Tensor, places: Tensor) -> None:
    cache[:, :, places - SIZE] = x


def by_scatter(cache: Tensor, x: Tensor, places: Tensor) -> None:
    cache.scatter_(2, places[None, None, :, None].expand(x.shape), x)


def by_slice(cache: Tensor, x: Tensor, places: Tensor) -> None:
    first, count = places[0].item(), x.shape[2]
    torch._check(first >= 0)
    torch._check(first + count <= SIZE)
    cache[:, :, first : first + count] = x


def by_moving_up(cache: Tensor, x: Tensor, places: Tensor) -> None:
    del places
    cache.copy_(torch.cat((cache[:, :, x.shape[2] :], x), 2))


WAYS = [by_index_copy, by_index, by_index_of_a_part, one_for_all, from_the_end, by_scatter]
WAYS += [by_slice, by_moving_up]


class Writes(nn.Module):
    """Writes to a cache, and reads all of it."""

    def __init__(self, way) -> None:
        super().__init__()
        self.way = way
        self.register_buffer("cache", torch.arange(2.0 * SIZE * 3).reshape(1, 2, SIZE, 3))

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        self.way(self.cache, x, places)
        return self.cache * 2


def given(count: int, first: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(1, 2, count, 3, generator=torch.Generator().manual_seed(count))
    x[0, 0, 0, 0], x[0, 1, -1, -1] = float("nan"), float("inf")
    return x, torch.arange(first, first + count)


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    shapes = {"x": {2: TOKENS}, "places": {0: TOKENS}}
    return torch.export.export(model.eval(), given(3, 2), dynamic_shapes=shapes)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_rewritten_programs_write_the_same(way) -> None:
    wanted = Writes(way)
    left = {aten.index_put.default, aten.scatter.src, aten.where.self}
    program = rewritten(
        exported(Writes(way)), Dialect(lambda op: op not in left, rewrite=frozenset(left))
    )
    assert not [n for n in program.graph.nodes if n.target in left - {aten.where.self}]
    found = program.module()
    for count, first in ((3, 0), (1, 3), (8, 4), (1, 15), (2, 14)):
        inputs = given(count, first)
        torch.testing.assert_close(found(*inputs), wanted(*inputs), rtol=0, atol=0, equal_nan=True)


class Shares(nn.Module):
    """Two layers that write to one cache, which hangs in both."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Writes(by_index_copy) for _ in range(2))
        self.layers[1].cache = self.layers[0].cache

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        first = self.layers[0](x, places)
        return first - self.layers[1](x / 2, places)


def test_a_state_may_hang_in_two_modules() -> None:
    wanted = Shares()
    program = rewritten(exported(Shares()), Dialect(lambda op: True))
    states = program.graph_signature.buffers_to_mutate.values()
    assert list(states) == ["layers.1.cache"]
    found = program.module()
    for count, first in ((3, 1), (1, 4), (2, 5)):
        inputs = given(count, first)
        torch.testing.assert_close(found(*inputs), wanted(*inputs), rtol=0, atol=0, equal_nan=True)


def test_states_have_their_shapes_in_the_program() -> None:
    program = rewritten(exported(Writes(by_moving_up)), Dialect(lambda op: True))
    (output,) = program.graph.find_nodes(op="output")
    written = output.args[0][0]
    assert (written.target, written.args[1]) == (aten.view.default, [1, 2, SIZE, 3])
    assert program.graph_signature.output_specs[0].arg.name == written.name


def test_the_last_value_counts_where_a_place_is_named_twice() -> None:
    places = torch.tensor([4, -1, 4, 15])
    x, cache = torch.arange(24.0).reshape(1, 2, 4, 3), torch.zeros(1, 2, SIZE, 3)
    made = REWRITES[aten.index_put.default].function(cache, [None, None, places], x)
    wanted = cache.clone()
    for at, place in enumerate(places.tolist()):
        wanted[:, :, place] = x[:, :, at]
    assert torch.equal(made, wanted)


@pytest.mark.parametrize("kind", [torch.float32, torch.int64, torch.bool])
def test_choices_by_a_condition_of_dynamic_shape(kind) -> None:
    """NaN, infinities and the sign of zero are as they were."""

    class Chooses(nn.Module):
        def forward(self, x: Tensor, places: Tensor) -> Tensor:
            seen = places[:, None] >= places
            some = torch.tensor([float("nan"), 1.0][kind is not torch.float32]).to(kind)
            return torch.where(seen, some, x[0, 0, :1, 0].to(kind))

    only = frozenset({aten.where.self})
    program = rewritten(exported(Chooses()), Dialect(lambda op: True, rewrite=only))
    (where,) = program.graph.find_nodes(op="call_function", target=aten.where.self)
    assert all(node.meta["val"].dim() == 2 for node in where.args)
    for first in (-0.0, 0.0, float("-inf"), 3.0):
        x, places = torch.full((1, 2, 4, 3), first), torch.arange(4)
        found, wanted = program.module()(x, places), Chooses()(x, places)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(torch.signbit(found[0, 1]), torch.signbit(wanted[0, 1]))


class Ends(nn.Module):
    """Reads the end of a cache, as much as an input says."""

    def __init__(self, largest: int | None) -> None:
        super().__init__()
        self.largest = largest
        self.register_buffer("cache", torch.arange(2.0 * SIZE * 3).reshape(1, 2, SIZE, 3))

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        count = places[0].item()
        torch._check(count >= 1)
        last = self.cache[:, :, torch.sym_max(0, SIZE - count) :]
        if self.largest is not None:
            torch._check(count <= self.largest)
        return x.sum() + last.sum()


def test_a_maximum_that_bounds_decide_is_settled() -> None:
    program = rewritten(exported(Ends(SIZE)), Dialect(lambda op: True))
    assert not program.graph.find_nodes(op="call_function", target=torch.sym_max)
    for count in (1, 5, SIZE):
        x, _ = torch.ones(1, 2, 1, 3), None
        places = torch.tensor([count])
        assert torch.equal(program.module()(x, places), Ends(SIZE)(x, places))


def test_a_maximum_that_nothing_decides_is_told_with_what_to_write() -> None:
    program = rewritten(exported(Ends(None)), Dialect(lambda op: True))
    (said,) = unfit(program, "this runtime")
    assert re.search(r"sym_max \(in the root module\): a slice .*torch\._check\(start >= 0\)", said)
