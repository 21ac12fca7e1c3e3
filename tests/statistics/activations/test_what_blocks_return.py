"""Blocks return tensors in containers and objects of any kind, and some do more than return."""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict, UserDict, namedtuple

import pytest
import torch
from torch import Tensor, nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig, allocate
from palette_core.errors import CalibrationError

CONFIG = KMeansPalettizerConfig.from_dict(
    {
        "kmeans_palettization_config": {
            "global_config": {"op_state_spec": {"weight": {"n_bits": 2, "algorithm": "lnq"}}}
        }
    }
)

Named = namedtuple("Named", "h note")


@dataclasses.dataclass
class Data:
    h: Tensor
    note: str = "x"


@dataclasses.dataclass(frozen=True)
class Frozen:
    inner: Data


@dataclasses.dataclass
class Output(OrderedDict):
    """An ordered mapping that is a dataclass, as transformers and diffusers return."""

    h: Tensor

    def __post_init__(self):
        self["h"] = self.h

    def __reduce__(self):
        return type(self), (self.h,)


class Plain:
    def __init__(self, h):
        self.h = h


class Slotted:
    __slots__ = ("h",)

    def __init__(self, h):
        self.h = h


# What a block returns, and how the next one gets at it.
KINDS = {
    "tensor": (lambda h: h, lambda x: x),
    "tuple": (lambda h: (h, None), lambda x: x[0]),
    "named tuple": (lambda h: Named(h, "n"), lambda x: x.h),
    "dict": (lambda h: {"h": [h]}, lambda x: x["h"][0]),
    "mapping": (lambda h: UserDict(h=h), lambda x: x["h"]),
    "dataclass": (Data, lambda x: x.h),
    "nested": (lambda h: [Frozen(Data(h))], lambda x: x[0].inner.h),
    "model output": (Output, lambda x: x.h),
    "object": (Plain, lambda x: x.h),
    "slots": (Slotted, lambda x: x.h),
    "complex": (
        lambda h: torch.view_as_complex(h.reshape(-1, 4, 2)),
        lambda x: torch.view_as_real(x).flatten(1),
    ),
    "distribution": (lambda h: torch.distributions.Normal(h, 1.0), lambda x: x.loc),
}


class Block(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def compute(self, h: Tensor) -> Tensor:
        return h * 2 + self.b(torch.relu(self.a(h)))

    def forward(self, x):
        into, out_of = KINDS[self.kind]
        return into(self.compute(out_of(x)))


class Net(nn.Module):
    """Blocks that hand on a hidden state in a container, which is written to in between."""

    def __init__(self, kind: str = "tensor", block: type[Block] = Block) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.blocks = nn.ModuleList(block(kind) for _ in range(2))

    def forward(self, x: Tensor):
        into, out_of = KINDS[self.kind]
        x = into(x)
        for block in self.blocks:
            out_of(x).mul_(0.5)
            x = self.step(block, x)
        return x

    def step(self, block, x):
        return block(x)


def batches(scale: float, n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 8, generator=generator) * scale]


def palettized(model: nn.Module, **options) -> tuple[dict[str, Tensor], list[str]]:
    """Calibrate on few rows, and let the held-out ones judge."""
    palettizer = KMeansPalettizer(model.eval(), CONFIG)
    palettizer.calibrate(batches(1.0, 6), held_out=batches(3.0, 60), **options)
    palettizer.prepare((batches(1.0, 6)[0],), show_progress=False)
    weights = {}
    for plan in palettizer.plan:
        owner = plan.owners[0]
        weights[plan.name] = getattr(model.get_submodule(owner.module), owner.state).detach()
    return weights, [tensor.algorithm for tensor in palettizer.report.tensors]


def assert_same(found: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    assert found.keys() == truth.keys()
    for name, weight in truth.items():
        assert torch.equal(found[name], weight), name


MODES = {
    "at once": {},
    "sequential": {"sequential": True},
    "weights": {"sequential": True, "compensate": False},
}


@functools.cache
def truth_of(mode: str, *, in_blocks: bool = True) -> tuple[dict[str, Tensor], list[str]]:
    """Return what becomes of the net whose blocks take and return a tensor."""
    return palettized(Net(), **MODES[mode], stages=None if in_blocks else [])


@pytest.mark.parametrize("mode", ["at once", "sequential"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tensor"])
def test_blocks_are_fed_and_judged_by_whatever_they_return(kind, mode):
    truth, algorithms = truth_of(mode)
    assert "kmeans1d" in algorithms  # held-out batches have turned something down
    found, same = palettized(Net(kind), **MODES[mode])
    assert same == algorithms
    assert_same(found, truth)


class InPlace(Block):
    """Writes to what it is given, and returns nothing."""

    def forward(self, x):
        x.copy_(self.compute(x))


class Generating(Block):
    """Returns what cannot be copied."""

    def forward(self, x):
        return (h for h in [self.compute(x)])


class Hiding(Block):
    """Returns a tensor that says nothing, and a function that has the other."""

    def forward(self, x):
        made = self.compute(x)
        return x.new_ones(1), lambda: made


class Noting(Block):
    """Leaves its output in a buffer of somebody else."""

    def forward(self, x):
        self.board[0].shared.copy_(self.compute(x))
        return x


class Posting(Block):
    """Leaves its output in a plain attribute of somebody else."""

    def forward(self, x):
        self.board[0].posted = self.compute(x)
        return x


class Listing(Block):
    """Appends its output to a list that it is given."""

    def forward(self, found):
        found.append(self.compute(found[-1]))
        return found[0]


class Odd(Net):
    def __init__(self, block: type[Block]) -> None:
        super().__init__("tensor", block)
        if block is Noting:
            self.register_buffer("shared", torch.zeros(1, 8))
        for each in self.blocks:
            each.board = [self]

    def forward(self, x):
        self.found = [x]
        if hasattr(self, "shared"):
            self.shared = torch.zeros_like(x)
        return super().forward(x)

    def step(self, block, x):
        match block:
            case InPlace():
                block(x)
                return x
            case Generating():
                return next(block(x))
            case Hiding():
                return block(x)[1]()
            case Noting():
                block(x)
                return self.shared + 0.0
            case Posting():
                block(x)
                return self.posted
            case _:
                self.found[-1] = x
                block(self.found)
                return self.found[-1]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("block", [InPlace, Generating, Hiding, Noting, Posting, Listing])
def test_blocks_that_do_more_than_return_run_every_time(block, mode):
    odd, x = Odd(block).eval(), batches(1.0, 5)[0]
    assert torch.equal(odd(x.clone()), Net().eval()(x.clone()))
    truth, _ = truth_of(mode, in_blocks=False)
    found, _ = palettized(odd, **MODES[mode])
    assert_same(found, truth)


class Picking(Net):
    """Returns numbers of classes, in an object of its own."""

    def forward(self, x):
        return Plain(super().forward(x).argmax(1))


def test_a_model_without_floating_outputs_is_judged_block_by_block():
    truth, _ = truth_of("sequential")
    found, _ = palettized(Picking(), sequential=True)
    assert_same(found, truth)


@pytest.mark.parametrize("mode", MODES)
def test_a_weight_that_only_such_outputs_could_judge_is_refused_with_their_type(mode):
    message = "by held-out batch 0: what .* returns on it holds no floating tensor: Plain"
    with pytest.raises(CalibrationError, match=message):
        palettized(Picking(), **MODES[mode], stages=[])


def allocated(model: nn.Module) -> float:
    x = batches(1.0, 6)
    how = {"target_bpw": 8, "candidates": (2, 4), "metric": "output", "batches": x}
    return allocate(model.eval(), KMeansPalettizerConfig(), (x[0],), **how).predicted_loss


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("tensor", "distribution")])
def test_allocation_by_outputs_takes_them_from_whatever_the_model_returns(kind):
    assert allocated(Net(kind)) == allocated(Net())


def test_allocation_by_outputs_refuses_those_that_say_nothing_by_their_type():
    with pytest.raises(CalibrationError, match="batch 0 holds no floating tensor: Plain"):
        allocated(Picking())


def test_allocation_by_outputs_refuses_those_whose_shape_depends_on_a_weight():
    class Filtering(Net):
        def forward(self, x):
            made = super().forward(x)
            return made[: 1 + int(made.abs().sum() * 1e6) % 5]

    with pytest.raises(CalibrationError, match=r"a palette for it .* other shapes on .* batch 0"):
        allocated(Filtering())
