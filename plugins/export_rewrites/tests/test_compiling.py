"""Graph modules that are compiled when somebody reads their code, and traces that nobody reads."""

import copy
import operator
from unittest import mock

import pytest
import torch
from torch import fx, nn

from export_rewrites import trace
from export_rewrites.compiling import compiled_late

X = torch.arange(6.0).reshape(2, 3)


class Doubles(nn.Module):
    def forward(self, x):
        return x * 2


@pytest.fixture
def compiles():
    """Return what counts how often a graph is compiled."""
    with mock.patch.object(
        fx.Graph, "python_code", autospec=True, side_effect=fx.Graph.python_code
    ) as counts:
        yield counts


def late() -> fx.GraphModule:
    """Return a module of which nothing is compiled."""
    with compiled_late():
        return fx.symbolic_trace(Doubles())


def test_nothing_is_compiled_that_nobody_reads(compiles) -> None:
    made = late()
    assert not compiles.called
    assert "_code" not in vars(made)


@pytest.mark.parametrize(
    "reads",
    [
        lambda made: made(X),
        lambda made: made.forward(X),
        lambda made: fx.symbolic_trace(made)(X),
        lambda made: copy.deepcopy(made)(X),
        lambda made: nn.Sequential(made)(X),
    ],
    ids=["called", "forward", "traced again", "copied", "in another"],
)
def test_a_module_computes_what_its_graph_says(reads) -> None:
    made = late()
    assert torch.equal(reads(made), X * 2)
    assert torch.equal(made(X), X * 2)


def test_code_is_that_of_the_graph() -> None:
    made = late()
    assert "x * 2" in made.code
    assert torch.equal(made(X), X * 2)


def test_a_graph_that_is_changed_is_compiled_anew() -> None:
    with compiled_late():
        made = fx.symbolic_trace(Doubles())
        assert torch.equal(made(X), X * 2)
        (node,) = made.graph.find_nodes(op="call_function", target=operator.mul)
        node.args = (node.args[0], 3)
        made.recompile()
        assert torch.equal(made(X), X * 3)
        node.args = (node.args[0], 4)
        made.recompile()
    assert "x * 4" in made.code
    assert torch.equal(made(X), X * 4)


def test_torch_compiles_as_ever_afterwards() -> None:
    before = fx.GraphModule.recompile
    with pytest.raises(KeyError), compiled_late():
        raise KeyError
    assert fx.GraphModule.recompile is before


def test_an_export_compiles_nothing(compiles) -> None:
    program = trace(Doubles(), (X,), backend="of this test")
    assert not compiles.called
    assert torch.equal(program.module()(X), X * 2)


@pytest.mark.parametrize("wanted", [True, False])
def test_lines_of_code_are_kept_where_they_are_asked_for(wanted) -> None:
    program = trace(Doubles(), (X,), backend="of this test", stack_traces=wanted)
    (node,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)
    assert ("x * 2" in (node.stack_trace or "")) is wanted
    assert fx.config.do_not_emit_stack_traces is False
