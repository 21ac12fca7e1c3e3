"""The step between torch.export and a converter."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from export_rewrites import (
    REWRITES,
    Dialect,
    evaluating,
    left_over,
    rewritten,
    tidy_outputs,
    trace,
)
from palette_core.errors import BackendError

aten = torch.ops.aten
X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


class Calls(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.function = function

    def forward(self, *inputs: Tensor) -> object:
        return self.function(*inputs)


def lacking(*ops) -> Dialect:
    return Dialect(takes=lambda op: op not in ops)


def targets(program) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def rewrite(function, dialect: Dialect, *inputs: Tensor):
    program = rewritten(torch.export.export(Calls(function).eval(), inputs), dialect)
    torch.testing.assert_close(program.module()(*inputs), function(*inputs), equal_nan=True)
    return program


def test_inputs_that_are_no_tensors_are_constants_of_the_program() -> None:
    class Options(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None, twice: bool = True) -> Tensor:
            y = x if mask is None else x * mask
            return y + y if twice else y

    for args, kwargs in (((X, None), {"twice": False}), ((), {"x": X, "twice": True})):
        program = rewritten(torch.export.export(Options(), args, kwargs), lacking())
        placeholders = [node.name for node in program.graph.find_nodes(op="placeholder")]
        assert placeholders == [spec.arg.name for spec in program.graph_signature.input_specs]
        assert placeholders == ["x"]
        (made,) = program.graph_module(X)
        assert torch.equal(made, X + X if kwargs["twice"] else X)


def test_what_a_converter_takes_stays() -> None:
    assert targets(rewrite(lambda x: x.std(-1), lacking(), X)) == {"aten.std.dim"}


def test_what_a_rewrite_uses_is_rewritten_in_turn() -> None:
    """median is a kthvalue, which is a topk."""
    dialect = lacking(aten.median.dim, aten.kthvalue.default)
    names = targets(rewrite(lambda x: x.median(-1), dialect, X))
    assert "aten.topk.default" in names
    assert not names & {"aten.median.dim", "aten.kthvalue.default"}


def test_torch_decomposes_what_has_no_rewrite() -> None:
    names = targets(rewrite(nn.functional.mse_loss, lacking(aten.mse_loss.default), X, X + 1))
    assert aten.mse_loss.default not in REWRITES
    assert "aten.mse_loss.default" not in names


def test_an_operation_that_is_wrong_for_some_arguments_is_rewritten_for_these() -> None:
    dialect = Dialect(takes=lambda op: True, rewrite=frozenset({aten.add.Tensor}))
    program = rewrite(lambda x: torch.add(x, x, alpha=3) + x, dialect, X)
    assert targets(program) == {"aten.add.Tensor", "aten.mul.Tensor"}
    assert all(len(n.args) < 3 for n in program.graph.nodes if "add" in str(n.target))


def test_a_rewrite_that_uses_an_operation_that_the_converter_lacks() -> None:
    """softplus with a threshold is a softplus without one, which is left to torch."""
    names = targets(
        rewrite(lambda x: nn.functional.softplus(x, 2, 1), lacking(aten.softplus.default), X)
    )
    assert "aten.softplus.default" not in names


def test_what_nobody_looks_at_goes_away() -> None:
    """Indices of maxima, which the rewrite has to make before it is known who uses them."""
    ops = frozenset({aten.max_pool2d_with_indices.default})
    dialect = Dialect(lambda op: op is not aten.max_pool2d.default, rewrite=ops)
    image = X.reshape(1, 1, 4, 4)
    program = rewrite(lambda x: nn.functional.max_pool2d(x, 2), dialect, image)
    assert targets(program) == {
        "aten.max_pool2d_with_indices.default",
        "<built-in function getitem>",
    }


def test_checks_and_copies_go_and_defaults_are_written_out() -> None:
    def function(x: Tensor) -> Tensor:
        return nn.functional.max_pool2d(x.to(torch.float32).detach(), 2)

    program = rewrite(function, lacking(), X.reshape(1, 1, 4, 4))
    assert targets(program) == {"aten.max_pool2d.default"}
    (pool,) = (node for node in program.graph.nodes if "pool" in str(node.target))
    assert list(pool.args[1:]) == [[2, 2], [], [0, 0], [1, 1], False]


def test_dynamic_shapes_stay_dynamic() -> None:
    dim = torch.export.Dim("batch", min=2, max=64)
    model = Calls(lambda x: x.var(-1) + torch.add(x, x, alpha=2).sum(-1)).eval()
    program = torch.export.export(model, (X,), dynamic_shapes={"inputs": ({0: dim},)})
    made = rewritten(program, lacking(aten.var.correction, aten.add.Tensor))
    other = torch.randn(5, 8)
    torch.testing.assert_close(made.module()(other), model(other))


def test_what_is_left_is_named_with_its_module() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Calls(torch.erfinv)).eval()
    program = rewritten(torch.export.export(model, (X,)), lacking(aten.erfinv.default))
    left = left_over(program, lambda node: node.target is not aten.erfinv.default)
    assert list(left) == ["aten.erfinv.default (in '1')"]


# --- tracing --------------------------------------------------------------------------------------


class Refuses(nn.Linear):
    def train(self, mode: bool = True) -> nn.Module:
        raise RuntimeError("not to be called")


def test_a_model_with_a_train_of_its_own() -> None:
    model = nn.ModuleList([nn.Dropout(), Refuses(8, 8)])
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.modules())


def test_an_exported_program_as_a_module() -> None:
    model = torch.export.export(nn.Linear(8, 8).eval(), (X,)).module()
    torch.testing.assert_close(trace(model, (X,), backend="b").module()(X), model(X))


@pytest.mark.parametrize(
    ("inputs", "text"),
    [(None, "needs example_inputs"), (X, "got Tensor"), ((X[:, :3],), "cannot take Linear")],
)
def test_inputs_that_are_none(inputs, text) -> None:
    with pytest.raises(BackendError, match=text):
        trace(nn.Linear(8, 8), inputs, backend="b")


def test_inputs_that_are_no_tensors() -> None:
    class Options(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None, *, twice: bool = False) -> Tensor:
            return x * 2 if twice else x

    made = trace(Options(), {"x": X, "mask": None, "twice": True}, backend="b")
    torch.testing.assert_close(made.module()(x=X, mask=None, twice=True), X * 2)


# --- constants, names, outputs --------------------------------------------------------------------


class Positions(nn.Module):
    """Computes positions in float64, and multiplies by a number in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(5.65685, dtype=torch.bfloat16))
        self.register_buffer("weight", torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(8, dtype=torch.float64).pow(0.5).erfinv().nan_to_num().float()
        return x * self.factor + positions + self.weight.exp()


def test_constants_are_computed_where_they_are_in_the_way() -> None:
    model = Positions().eval()
    program = rewritten(torch.export.export(model, (X,)), lacking(aten.erfinv.default))
    names = targets(program)
    assert not any("erfinv" in name or "pow" in name for name in names)
    assert "aten.exp.default" in names  # in nobody's way
    held = [node.meta["val"] for node in program.graph.find_nodes(op="placeholder")]
    assert {value.dtype for value in held} == {torch.float32}
    torch.testing.assert_close(program.module()(X), model(X))


def test_what_a_model_writes_to_is_no_constant() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.full((8,), 0.25))

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(0.25)
            return x + torch.erfinv(self.count)

    program = rewritten(torch.export.export(Counter(), (X,)), lacking(aten.erfinv.default))
    assert "aten.erfinv.default" in targets(program)


def test_nodes_are_not_called_as_arguments_are() -> None:
    """coremltools takes the one for the other."""
    program = rewritten(
        torch.export.export(
            Calls(lambda x: torch.div(torch.floor(x), 2, rounding_mode="floor")), (X,)
        ),
        lacking(),
    )
    assert "floor" not in {node.name for node in program.graph.nodes}


def test_outputs_that_are_none_or_there_twice() -> None:
    class Many(nn.Module):
        def forward(self, x: Tensor) -> tuple[Any, ...]:
            y = (x + 1).detach()
            return y, None, y, x, y > 0, None

    program = rewritten(torch.export.export(Many(), (X,)), lacking())
    tidy_outputs(program)
    names = [spec.arg.name for spec in program.graph_signature.output_specs]
    (output,) = program.graph.find_nodes(op="output")
    assert [node.name for node in output.args[0]] == names
    assert len(set(names)) == 4
    assert "x" not in names


def test_views_of_views_leave_out_what_is_between() -> None:
    def windows(x: Tensor) -> Tensor:
        tiles = x.reshape(1, 2, 2, 2, 2, 2).permute(0, 1, 3, 2, 4, 5)
        return tiles.reshape(4, 8)

    image = torch.randn(1, 4, 4, 2)
    program = rewrite(windows, lacking(aten.permute.default), image)
    assert all(node.meta["val"].dim() <= 5 for node in program.graph.nodes if "val" in node.meta)


def test_views_of_what_lies_otherwise_in_memory() -> None:
    """A rewrite may return what torch's own operation lays out in another order."""

    def heads(x: Tensor) -> Tensor:
        mask = torch.ones(4, 4, dtype=torch.bool)
        made = nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)
        return made.transpose(1, 2).reshape(1, 4, 4)

    dialect = Dialect(
        lambda op: True, rewrite=frozenset({aten.scaled_dot_product_attention.default})
    )
    program = rewritten(torch.export.export(Calls(heads), (X.reshape(1, 2, 4, 2),)), dialect)
    assert "aten.where.self" in targets(program)


def test_slices_of_module_lists_have_plain_names() -> None:
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Calls(torch.erfinv) for _ in "ab"])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers[:1]:
                x = layer(x)
            return x

    program = rewritten(torch.export.export(Sliced(), (X,)), lacking())
    assert list(left_over(program, lambda node: False)) == ["aten.erfinv.default (in 'layers.0')"]


def test_objects_that_hold_no_tensors_for_torch_are_named_with_what_to_do() -> None:
    class SomeCache:
        pass

    class Box:
        pass

    class Model(nn.Module):
        def __init__(self, kind: type) -> None:
            super().__init__()
            self.kind = kind

        def forward(self, x: Tensor, given: object = None, use_cache: bool = True) -> object:
            return (x + 1, self.kind()) if use_cache else x + 1

    for kind, advice in ((SomeCache, "use_cache=False"), (Box, "register_pytree_node")):
        model = Model(kind)
        with pytest.raises(BackendError, match=rf"forward returns a .*{kind.__name__}.*{advice}"):
            trace(model, (X,), backend="coreai")
        given = {"x": X, "given": kind(), "use_cache": False}
        with pytest.raises(BackendError, match=rf"inputs hold a .*{kind.__name__}.*{advice}"):
            trace(model, given, backend="coreai")
        trace(model, {"x": X, "use_cache": False}, backend="coreai")


def test_modules_that_torch_has_quantized_are_told_from_what_else_fails() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Linear(8, 8)).eval(), {"0"}, dtype=torch.qint8
        )
    with pytest.raises(BackendError, match=r"torch has quantized.*palettize the float model"):
        trace(model, (X,), backend="coreai")


def test_the_module_that_torch_export_fails_in_is_named() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(Branches()), nn.ReLU())
    with pytest.raises(BackendError, match=r"cannot take Sequential with .* \(in '1\.0'\): "):
        trace(model, (X,), backend="coreml")
