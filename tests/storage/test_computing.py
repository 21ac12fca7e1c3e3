"""Layers of finalized models that compute from packed weights, wherever torch may call them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numba
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from palette_core.errors import TrainingError
from palette_core.storage import PackedWeight
from palette_core.storage.pack import install_packed
from palette_core.tensors import PalettizedTensor
from palette_core.tensors import product_operators as operators

IN, OUT = 200, 160


def packed(layer: nn.Linear | nn.Embedding) -> nn.Module:
    """Make the weight of a layer one of 16 entries drawn at random."""
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(16, layer.weight.shape, generator=generator, dtype=torch.uint8)
    lut = torch.randn(1, 1, 16, 1, generator=generator)
    tensor = PalettizedTensor(indices, lut, 4, 0, torch.float32)
    install_packed(layer, ["weight"], PackedWeight(tensor))
    return layer


def weight_of(layer: nn.Module) -> PackedWeight:
    (found,) = (part for part in layer.modules() if isinstance(part, PackedWeight))
    return found


@pytest.fixture
def linear() -> nn.Module:
    return packed(nn.Linear(IN, OUT))


@pytest.fixture
def table() -> nn.Module:
    return packed(nn.Embedding(50, 24))


def dense(layer: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.linear(x, weight_of(layer).dense(), layer.bias)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("count", [2, 9])
def test_take_no_notice_of_the_default_dtype(
    linear: nn.Module, table: nn.Module, dtype: torch.dtype, count: int
) -> None:
    x, rows = torch.randn(count, IN), torch.tensor([0, 49])
    expected, picked = dense(linear, x), weight_of(table).dense()[rows]
    with default_dtype(dtype):
        assert torch.equal(table(rows), picked)
        assert torch.equal(linear.weight, weight_of(linear).dense())
        torch.testing.assert_close(linear(x), expected, rtol=1e-4, atol=1e-3)


def jvp(layer: nn.Module, x: Tensor) -> Tensor:
    tangent: Tensor = torch.func.jvp(layer, (x,), (x,))[1]
    return tangent + layer.bias


def gradient(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the layer's output by way of the gradients of its square."""
    found: Tensor = torch.func.grad(lambda v: layer(v).square().sum() / 2)(x)
    return found


TRACES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "fx": lambda layer, x: torch.fx.symbolic_trace(nn.Sequential(copy.deepcopy(layer)))(x),
    "make_fx": lambda layer, x: make_fx(layer)(torch.zeros_like(x))(x),
    "make_fx before dispatch": lambda layer, x: make_fx(layer, pre_dispatch=True)(
        torch.zeros_like(x)
    )(x),
    "jvp": jvp,
    "vmap": lambda layer, x: torch.func.vmap(layer)(x),
}


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("kind", TRACES)
def test_whoever_watches_sees_torch_compute(linear: nn.Module, kind: str, gradients: bool) -> None:
    x = torch.randn(3, IN)
    with torch.set_grad_enabled(gradients):
        found = TRACES[kind](linear, x)
    torch.testing.assert_close(found, dense(linear, x), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("transform", [jvp, gradient, TRACES["vmap"]])
def test_compiled_transforms_are_those_of_dense_layers(
    linear: nn.Module, transform: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    x = torch.randn(3, IN)
    plain = nn.Linear(IN, OUT)
    plain.load_state_dict({"weight": weight_of(linear).dense(), "bias": linear.bias})
    torch.compiler.reset()
    compiled = torch.compile(lambda x: transform(linear, x), backend="aot_eager")
    torch.testing.assert_close(compiled(x), transform(plain, x), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("gradients", [False, True])
def test_nested_inputs_go_the_way_of_torch(linear: nn.Module, gradients: bool) -> None:
    parts = [torch.randn(2, IN), torch.randn(3, IN)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls them a prototype
        nested = torch.nested.nested_tensor(parts)
    with torch.set_grad_enabled(gradients):
        found = linear(nested)
    for part, own in zip(parts, found.unbind(), strict=True):
        torch.testing.assert_close(own, dense(linear, part), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(
    "bias",
    [torch.zeros(OUT, dtype=torch.float64), torch.zeros(7), torch.zeros(OUT, device="meta")],
    ids=["dtype", "size", "device"],
)
def test_torch_refuses_the_biases_that_it_refuses(
    linear: nn.Module, bias: Tensor, gradients: bool, count: int
) -> None:
    linear.bias = nn.Parameter(bias)
    with torch.set_grad_enabled(gradients), pytest.raises(RuntimeError):
        linear(torch.randn(count, IN))


@pytest.mark.parametrize("x", [torch.zeros(2, IN // 2), torch.zeros(2, IN).half()])
def test_operators_take_what_the_layer_takes(linear: nn.Module, x: Tensor) -> None:
    arguments = weight_of(linear).stored().arguments()
    with pytest.raises(RuntimeError):
        operators.palettized_linear(x, *arguments)


def test_tables_that_are_trained_are_left_to_torch(linear: nn.Module) -> None:
    weight_of(linear).lut.requires_grad_()
    x = torch.randn(3, IN)
    torch.testing.assert_close(linear(x), dense(linear, x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", ["linear", "table"])
def test_gradients_for_tables_are_refused(
    name: str, compiled: bool, request: pytest.FixtureRequest
) -> None:
    layer = request.getfixturevalue(name)
    weight_of(layer).lut.requires_grad_()
    x = torch.randn(3, IN) if name == "linear" else torch.arange(4)
    call = torch.compile(layer, backend="eager") if compiled else layer
    with pytest.raises(TrainingError, match="train the prepared model"):
        call(x).sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(call(x), layer(x))


@pytest.mark.parametrize("where", ["weight", "weight.0"])
def test_hooks_see_the_weight(linear: nn.Module, where: str) -> None:
    linear.get_submodule(f"parametrizations.{where}").register_forward_hook(lambda *a: a[-1] * 0)
    assert torch.equal(linear(torch.randn(3, IN)), linear.bias.expand(3, OUT))


def test_compute_without_compiled_kernels(
    linear: nn.Module, table: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    x, rows = torch.randn(3, IN), torch.tensor([1, 2])
    torch.testing.assert_close(linear(x), dense(linear, x), rtol=1e-4, atol=1e-3)
    assert torch.equal(table(rows), weight_of(table).dense()[rows])
