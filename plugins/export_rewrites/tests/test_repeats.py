"""Programs of operations that repeat: each kind is decomposed once, and all is as torch has it."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from export_rewrites import Dialect, decompositions
from export_rewrites.passes import drop_checks
from export_rewrites.repeats import decomposed

aten = torch.ops.aten
X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
LACKING = frozenset({aten.silu.default, aten.rms_norm.default, aten.linear.default})


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.RMSNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.linear(self.norm(x)).split(4, dim=-1)
        return x + torch.cat([nn.functional.silu(first), second], dim=-1)


def deep(count: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(Layer() for _ in range(count))).eval()


def exported(model: nn.Module, *inputs: Any, **how: Any) -> Any:
    with torch.no_grad():
        return torch.export.export(model, inputs, **how)


def table(calls: Counter[Any] | None = None) -> dict[Any, Any]:
    """Return decompositions; ``calls`` counts them by operation."""
    made = decompositions(Dialect(lambda op: op not in LACKING))

    def counting(op: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[op] += 1
            return made[op](*args, **kwargs)

        return call

    return made if calls is None else {op: counting(op) for op in made}


def written(program: Any) -> list[str]:
    """Return the nodes of a program in words, counted anew: torch counts also what it drops."""
    drop_checks(program.graph)
    lines = []
    for at, node in enumerate(program.graph.nodes):
        if node.op == "call_function":
            node._rename(f"node_{at}")
        value = node.meta.get("val")
        lines.append(f"{node.format_node()} {getattr(value, 'stride', list)()}")
    return lines


def test_the_program_is_torchs_own_to_the_strides_and_modules() -> None:
    ours = decomposed(exported(deep(3), X), table())
    torchs = exported(deep(3), X).run_decompositions(table())
    assert ours.graph_signature == torchs.graph_signature
    assert written(ours) == written(torchs)
    modules = [
        [list((node.meta.get("nn_module_stack") or {}).values()) for node in program.graph.nodes]
        for program in (ours, torchs)
    ]
    assert modules[0] == modules[1]
    assert not any(node.target in LACKING for node in ours.graph.nodes)


def test_the_program_runs() -> None:
    model = deep(2)
    torch.testing.assert_close(decomposed(exported(model, X), table()).module()(X), model(X))


def test_layers_that_are_alike_are_decomposed_once() -> None:
    few, many = Counter[Any](), Counter[Any]()
    decomposed(exported(deep(1), X), table(few))
    decomposed(exported(deep(5), X), table(many))
    assert few[aten.silu.default] > 0
    assert many == few


class Alike(nn.Module):
    """The same operations with other strides, dtypes, numbers, and arguments given twice."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        turned = x.transpose(1, 2)
        ints = x.to(torch.int64)
        return (
            torch.add(x, 1), torch.add(x, 1.0), torch.add(x, True), torch.add(ints, 1),
            torch.mul(x, x), torch.mul(x, x + 1), torch.mul(turned, turned),
            turned.reshape(2, 48), x.reshape(2, 48), x.max(dim=1)[0], turned.max(dim=1)[1],
            nn.functional.silu(turned), nn.functional.silu(x.double()),
        )  # fmt: skip


def test_calls_that_differ_stay_apart() -> None:
    ours = decomposed(exported(Alike(), X), table())
    torchs = exported(Alike(), X).run_decompositions(table())
    assert written(ours) == written(torchs)
    for got, wanted in zip(ours.module()(X), Alike()(X), strict=True):
        torch.testing.assert_close(got, wanted)
        assert got.dtype == wanted.dtype


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return x + self.seen


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y[:, 0].add_(1)
        return nn.functional.silu(y)


def test_other_strides_after_a_decomposition_make_another_kind() -> None:
    def turns(x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous()

    class Turns(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.silu(x).reshape(2, 48) + nn.functional.silu(x + 1).reshape(2, 48)

    own = {**table(), aten.silu.default: lambda x: turns(torch.sigmoid(x) * x).transpose(1, 2)}
    ours = decomposed(exported(Turns(), X), own)
    torchs = exported(Turns(), X).run_decompositions(own)
    assert written(ours) == written(torchs)
    torch.testing.assert_close(ours.module()(X), Turns()(X))


@pytest.mark.parametrize(
    ("model", "how"),
    [
        (Counts(), {}),
        (Writes(), {}),
        (deep(2), {"dynamic_shapes": ({1: torch.export.Dim("words", min=2, max=20)},)}),
    ],
    ids=["buffers that are written", "writes", "sizes of the inputs"],
)
def test_what_is_not_plain_is_left_to_torch(model: nn.Module, how: dict[str, Any]) -> None:
    ours = decomposed(exported(model, X, **how), table())
    torchs = exported(model, X, **how).run_decompositions(table())
    assert written(ours) == written(torchs)
    assert [s.kind for s in ours.graph_signature.output_specs] == [
        s.kind for s in torchs.graph_signature.output_specs
    ]


def test_an_operation_that_fails_to_decompose_fails_as_torch_says() -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("of this table")

    own = {**table(), aten.silu.default: fails}
    with pytest.raises(ZeroDivisionError, match="of this table"):
        decomposed(exported(deep(1), X), own)
