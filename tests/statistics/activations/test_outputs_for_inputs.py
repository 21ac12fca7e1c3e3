"""Outputs of the unchanged model in place of its inputs: beside what inputs give, in float64."""

import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core.plugins import Consumption
from palette_core.statistics.activations import feeding, paused_run, pausing
from palette_core.statistics.activations.accumulate import Accumulator
from palette_core.statistics.activations.compensating import Compensation
from palette_core.statistics.activations.outputs import are_smaller, note, plain_outputs
from palette_core.statistics.activations.pausing import Pausing, Scout
from palette_core.tensors import BlockLayout
from palette_core.tensors.input_views import Features

CONFIG = KMeansPalettizerConfig.from_dict(
    {
        "kmeans_palettization_config": {
            "global_config": {"op_state_spec": {"weight": {"n_bits": 2, "algorithm": "gptq"}}}
        }
    }
)


class Block(nn.Module):
    """A hidden layer of four times the width, with a bias, and one without after it."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.last = nn.Linear(8, 8, bias=False)

    def forward(self, x):
        return x + self.last(torch.tanh(x + self.down(torch.relu(self.up(x)))))


class Written(Block):
    """What is multiplied with the narrow weight is written to afterwards."""

    def forward(self, x):
        hidden = torch.relu(self.up(x))
        low = F.linear(hidden, self.down.weight) + hidden[:, :8]
        hidden.zero_()
        return x + self.last(low + self.down.bias)


class Added(Block):
    """The narrow product comes with something else for every vector."""

    def forward(self, x):
        return self.last(F.linear(torch.relu(self.up(x)), self.down.weight, x))


class AddedAndWritten(Block):
    """Neither inputs nor outputs are as they were by the next operation with a weight."""

    def forward(self, x):
        hidden = torch.relu(self.up(x))
        low = F.linear(hidden, self.down.weight, x)
        hidden.zero_()
        return self.last(low)


class Net(nn.Module):
    """Two blocks."""

    def __init__(self, block):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(block() for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def outputs_of(what, out):
    noted = note(what, out)
    return None if noted is None else plain_outputs(noted)


def targets(block, monkeypatch, *, by_outputs=True):
    """Return what compensation makes of the weights of a net, and what came with each input."""
    found, given = {}, []
    target, feed = Compensation.target, Pausing.feed

    def noted(self, weight, *rest):
        found[len(found)] = target(self, weight, *rest)
        return found[len(found) - 1]

    def shown(self, step, see):
        def note(item):
            given.append((item.name, item.before is None, item.outputs is None))
            see(item)

        feed(self, step, note)

    monkeypatch.setattr(Compensation, "target", noted)
    monkeypatch.setattr(Pausing, "feed", shown)
    if not by_outputs:
        monkeypatch.setattr(Pausing, "_has_small_outputs", lambda self, step: False)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(40, 8, generator=generator) for _ in range(4)]
    palettizer = KMeansPalettizer(Net(block).eval(), CONFIG)
    palettizer.calibrate(batches, sequential=True)
    palettizer.prepare(batches[0])
    monkeypatch.undo()
    return found, given


@pytest.mark.slow
@pytest.mark.parametrize("block", [Block, Written, Added, AddedAndWritten])
def test_weights_aim_at_the_same_outputs(block, monkeypatch):
    found, given = targets(block, monkeypatch)
    truth, usual = targets(block, monkeypatch, by_outputs=False)
    assert len(found) == len(truth) > 2
    for number, weight in truth.items():
        torch.testing.assert_close(found[number], weight, rtol=1e-3, atol=1e-4)
    assert all(no_outputs for _, _, no_outputs in usual)
    if block is not AddedAndWritten:  # whose runs start over
        narrow = {name for name, _, no_outputs in given if not no_outputs}
        assert narrow == {f"blocks.{n}.down.weight" for n in range(2)}
    assert all(no_inputs for _, no_inputs, no_outputs in given if not no_outputs)


def test_outputs_of_the_first_batch_are_kept_when_it_is_looked_at(monkeypatch):
    made, kept, settle = [], [], Scout.settle
    monkeypatch.setattr(pausing, "products_with", lambda *a: made.append(a))

    def settled(self, names):
        settle(self, names)
        kept.append((set(self.outputs), set(self.inputs)))

    monkeypatch.setattr(Scout, "settle", settled)
    _, given = targets(Block, monkeypatch)
    ((outputs, inputs),) = kept
    assert outputs == {f"blocks.{n}.down.weight" for n in range(2)}
    assert not outputs & inputs
    assert not made
    assert {name for name, _, no_outputs in given if not no_outputs} == outputs


@pytest.mark.slow
def test_runs_start_over_only_where_neither_is_left(monkeypatch):
    over, start = [], feeding.Feeder.start_over
    monkeypatch.setattr(feeding.Feeder, "start_over", lambda self: over.append(1) or start(self))
    made, ask = [], paused_run.plain_outputs
    monkeypatch.setattr(paused_run, "plain_outputs", lambda *a: made.append(ask(*a)) or made[-1])
    for block, starts, known in ((Block, 0, True), (Added, 0, False), (AddedAndWritten, 1, False)):
        over.clear(), made.clear()
        generator = torch.Generator().manual_seed(1)
        batches = [torch.randn(40, 8, generator=generator) for _ in range(4)]
        palettizer = KMeansPalettizer(Net(block).eval(), CONFIG)
        palettizer.calibrate(batches, sequential=True)
        palettizer.prepare(batches[0])
        assert len(over) == starts, block
        assert {outputs is not None for outputs in made} == {known}, block


@pytest.mark.parametrize("bias", [None, 3.0])
def test_sums_of_outputs_solve_for_the_same_weight(bias):
    torch.manual_seed(0)
    weight, view = torch.randn(3, 16), Features()
    plan = types.SimpleNamespace(name="w", layout=BlockLayout((3, 16), (3, 16)))
    sums = Accumulator(None, (plan, weight))
    square, moved, count = 0.0, 0.0, 0
    for _ in range(3):
        x = torch.randn(2, 30, 16)
        before = x + 0.2 * torch.randn_like(x)
        added = None if bias is None else bias * torch.randn(3)
        what = Consumption(weight, (before,), view)
        outputs = outputs_of(what, F.linear(before, weight, added))
        sums.add("w", Consumption(weight, (x,), view), None, None, outputs)
        now, then = x.reshape(-1, 16).double(), before.reshape(-1, 16).double()
        square, moved = square + now.mT @ now, moved + weight.double() @ (then - now).mT @ now
        count += len(now)
    moments, gap = sums.result(plan), sums.gap("w")
    assert gap.cross is None
    assert gap.moved is None
    found = Compensation().target(weight, moments, gap, 0.05)
    ridge = 0.05 * square.diagonal().mean() / count * torch.eye(16)
    truth = weight.double() + moved / count @ torch.linalg.inv(square / count + ridge)
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)


def test_only_what_is_a_product_and_the_same_for_all_vectors_is_taken():
    torch.manual_seed(0)
    weight, x = torch.randn(3, 16), torch.randn(2, 30, 16)
    what = Consumption(weight, (x,), Features())
    plain = x.reshape(-1, 16) @ weight.mT
    for out in (F.linear(x, weight), F.linear(x, weight, torch.randn(3))):
        torch.testing.assert_close(outputs_of(what, out), plain)
    for out in (F.linear(x, weight).relu(), F.linear(x, weight)[:1], None):
        assert outputs_of(what, out) is None
    assert outputs_of(what, F.linear(x, weight) + torch.randn(2, 30, 3)) is None
    half = Consumption(weight.bfloat16(), (x.bfloat16(),), Features())
    assert outputs_of(half, F.linear(x.bfloat16(), weight.bfloat16())) is None


def test_outputs_serve_where_they_are_less_than_half():
    shapes = (torch.Size((2, 30, 16)),)
    assert are_smaller(Features(), (7, 16), shapes)
    assert not are_smaller(Features(), (8, 16), shapes)
    assert not are_smaller(Features(), (7, 16), ())
    assert not are_smaller(Features(rows=(1,)), (7, 16), shapes)
    assert not are_smaller(Features(parts=2), (7, 16), shapes)
