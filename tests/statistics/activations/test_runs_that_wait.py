"""Runs that wait for palettes: how often blocks run, and what runs keep from each other."""

import random
import threading
import weakref

import numpy as np
import pytest
import torch
from run_threads import run_threads
from torch import nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core.errors import CalibrationError
from palette_core.statistics.activations import feeding
from palette_core.statistics.activations.pausing import Scout

CONFIG = KMeansPalettizerConfig.from_dict(
    {
        "kmeans_palettization_config": {
            "global_config": {"op_state_spec": {"weight": {"n_bits": 2, "algorithm": "lnq"}}}
        }
    }
)


class Block(nn.Module):
    """Projections with one input, one after them, and a hidden layer: four different inputs."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        y = torch.sigmoid(self.q(x)) * self.k(x) + self.v(x)
        x = x + self.o(y)
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    """Three blocks and a head."""

    def __init__(self, block=Block):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(block() for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def batches(n=5):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(12, 8, generator=generator) for _ in range(n)]


def palettized(model, monkeypatch, *, waits=True, given=None, example=None, **options):
    """Return weights and algorithms; without ``waits`` from runs that start over."""
    given = batches() if given is None else given
    if not waits:
        monkeypatch.setattr(Scout, "may_wait", lambda self, structure, n: False)
    palettizer = KMeansPalettizer(model.eval(), CONFIG)
    palettizer.calibrate(given, sequential=True, **options)
    palettizer.prepare(given[0] if example is None else example)
    monkeypatch.undo()
    assert run_threads() == []
    return {
        plan.name: getattr(
            model.get_submodule(plan.owners[0].module), plan.owners[0].state
        ).detach()
        for plan in palettizer.plan
    }, [row.algorithm for row in palettizer.report.tensors]


def assert_same_either_way(make, monkeypatch, **options):
    found, algorithms = palettized(make(), monkeypatch, **options)
    truth, same = palettized(make(), monkeypatch, waits=False, **options)
    assert algorithms == same
    for name, weight in truth.items():
        assert torch.equal(found[name], weight), name


@pytest.fixture
def never_over(monkeypatch):
    """Fail where inputs come from runs that start over."""

    def over(self):
        raise AssertionError("started over")

    monkeypatch.setattr(feeding.Feeder, "start_over", over)
    return monkeypatch


@pytest.mark.parametrize("compensate", [True, False])
def test_each_batch_passes_each_block_twice(compensate, never_over):
    model, ran, given = Net().eval(), {}, batches()

    def count(number):
        ran[number] = ran.get(number, 0) + 1

    for number, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, number=number: count(number))
    palettizer = KMeansPalettizer(model, CONFIG)
    palettizer.calibrate(given, sequential=True, compensate=compensate)
    traced = 1  # the example, for the plan
    assert ran == dict.fromkeys(range(3), traced)
    ran.clear()
    palettizer.prepare(given[0])
    unchanged = len(given) if compensate else 1
    assert ran == dict.fromkeys(range(3), unchanged + len(given))


def test_runs_of_the_unchanged_model_do_not_wait_where_they_hold_much(never_over):
    made, most = [], 0

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            hidden = torch.relu(self.up(x))
            made.append(weakref.ref(hidden))
            nonlocal most
            most = max(most, sum(each() is not None for each in made))
            return x + self.down(hidden)

    palettized(Net(Wide).eval(), never_over, given=batches(6))
    # Those of the model as it becomes wait there, and of the others no two at a time; one or two
    # are remembered, as the next layer may share them.
    assert 6 < most <= 6 + 1 + 2


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("compensate", [True, False])
def test_runs_that_wait_and_runs_that_start_over_give_the_same(compensate, n, monkeypatch):
    options = {"compensate": compensate, "given": batches(n)}
    assert_same_either_way(Net, monkeypatch, **options)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_stages_that_are_turned_down_are_fed_on_as_they_have_become(seed, monkeypatch):
    generator = torch.Generator().manual_seed(seed)
    held_out = [torch.randn(60, 8, generator=generator) * 3 for _ in range(2)]
    few = torch.randn(1, 8, generator=generator) * torch.tensor([9.0, *[0.01] * 7])
    narrow = [few * scale for scale in (1.0, 2.0, 3.0)]
    _, algorithms = palettized(Net(), monkeypatch, given=narrow, held_out=held_out)
    assert "kmeans1d" in algorithms
    assert_same_either_way(Net, monkeypatch, given=narrow, held_out=held_out)


@pytest.mark.slow
def test_guided_moments_are_the_same_either_way(monkeypatch):
    loss = lambda out, batch: out.square().mean()  # noqa: E731
    assert_same_either_way(Net, monkeypatch, loss=loss)


class Keeping(Block):
    """Keeps what it computes in attributes, a list, a dictionary and a buffer, until it returns."""

    def __init__(self):
        super().__init__()
        self.board, self.found, self.notes = None, [], {}
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x):
        self.board = x
        self.found.append(x * 2)
        self.notes["y"] = torch.sigmoid(self.q(x))
        self.count += x.sum()
        self.last = x.mean(dim=0)
        y = self.k(self.board) * self.notes["y"] + self.v(self.found[-1] / 2) + self.count * 1e-3
        x = self.board + self.o(y) + self.last
        return x + self.down(torch.relu(self.up(self.found.pop() - self.board)))


class Drawing(Block):
    """Draws random numbers, of torch, Python and numpy."""

    def forward(self, x):
        x = x + torch.rand(8)
        x = x + self.o(self.q(x) * self.k(x) + self.v(x) * random.random())
        return x + self.down(self.up(x) * np.random.rand() + torch.rand(1))


class Switching(Block):
    """Has modes of its own around what reads weights."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            x = x + self.q(x).float()
            with torch.autocast("cpu", enabled=False), torch.inference_mode():
                y = self.k(x)
            with torch.enable_grad():
                assert torch.is_grad_enabled()
                z = self.v(x).float().detach()
        assert not torch.is_autocast_enabled("cpu")
        with torch.device("meta"):
            w = self.o(x)
            assert torch.empty(1).is_meta
        assert not torch.empty(1).is_meta
        return self.down(torch.relu(self.up(x + y.clone() + z + w)))


@pytest.mark.slow
@pytest.mark.parametrize("block", [Keeping, Drawing, Switching])
def test_runs_that_wait_keep_apart_what_they_do(block, never_over):
    never_over.undo()
    Net(block)  # seeds, as each that is made below
    random_states = random.getstate(), torch.random.get_rng_state()
    # Blocks that answer from memory draw no numbers, so without stages.
    assert_same_either_way(lambda: Net(block), never_over, stages=[])
    assert random.getstate() == random_states[0]
    assert torch.equal(torch.random.get_rng_state(), random_states[1])


class DrawingLate(Block):
    """Draws random numbers where a batch has 13 rows."""

    def forward(self, x):
        if len(x) == 13:
            x = x + torch.rand(8)
        return super().forward(x)


@pytest.mark.slow
def test_runs_start_over_where_later_batches_draw_numbers(monkeypatch):
    over, calls = feeding.Feeder.start_over, []
    generator = torch.Generator().manual_seed(2)
    given = [*batches(2), *(torch.randn(13, 8, generator=generator) for _ in range(2))]

    def make():
        monkeypatch.setattr(
            feeding.Feeder, "start_over", lambda self: (calls.append(1), over(self))[1]
        )
        return Net(DrawingLate)

    assert_same_either_way(make, monkeypatch, given=given, stages=[])
    assert len(calls) == 2  # where runs wait, and where they are kept from it


class Shelf:
    """Something that is neither a module nor a container."""

    def __init__(self):
        self.x = None


class Hiding(Block):
    """Keeps what it computes where no run can be kept apart from another."""

    def __init__(self):
        super().__init__()
        self.shelf = Shelf()

    def forward(self, x):
        self.shelf.x = x
        x = super().forward(x)
        return x + self.shelf.x


class Sharing(Block):
    """Keeps what it computes in its class."""

    latest = None

    def forward(self, x):
        type(self).latest = x
        return super().forward(x) + self.latest


_KNOWN = {}


class Publishing(Block):
    """Keeps what it computes in a variable of its file."""

    def forward(self, x):
        _KNOWN["x"] = x
        return super().forward(x) + _KNOWN["x"]


class Counting(Block):
    """Counts in a buffer whose version does not tell."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count.data += 1
        return super().forward(x) * self.count


class Reusing(Block):
    """Uses a weight twice."""

    def forward(self, x):
        return super().forward(super().forward(x))


@pytest.mark.parametrize("block", [Hiding, Sharing, Publishing, Counting, Reusing])
def test_other_models_get_their_inputs_from_runs_that_start_over(block, monkeypatch):
    calls, real = [], feeding.Feeder.start_over
    monkeypatch.setattr(feeding.Feeder, "start_over", lambda s: (calls.append(1), real(s))[1])
    palettized(Net(block), monkeypatch)
    assert calls == [1]


class Routed(nn.Module):
    """The second batch goes another way than the first, which nobody can know."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.a(x)
        for _ in range(1 + (len(x) > 12)):
            x = self.b(x)
        return self.out(x)


@pytest.mark.parametrize("compensate", [True, False])
def test_batches_that_differ_begin_anew(compensate, monkeypatch):
    given = [torch.randn(12, 8), torch.randn(13, 8)]
    options = {"compensate": compensate, "given": given}
    assert_same_either_way(Routed, monkeypatch, **options)


class Choosing(nn.Module):
    """A router, and experts one after the other: only those that some rows are sent to."""

    def __init__(self, seed, order):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.before, self.router = nn.Linear(8, 8), nn.Linear(8, 12)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(12))
        self.head = nn.Linear(8, 4)
        self.order = order
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)

    def forward(self, x):
        x = self.before(x)
        chosen = self.router(x).argmax(-1)
        out = torch.zeros_like(x)
        for i in sorted(set(chosen.tolist()), key=lambda i: self.order * i):
            out[chosen == i] = self.experts[i](x[chosen == i])
        return self.head(x + out)


class Turning(Choosing):
    """Experts in an order that the inputs decide."""

    def forward(self, x):
        self.order = 1.0 if self.before(x)[0, 0] > 0 else -1.0
        return super().forward(x)


@pytest.mark.slow
@pytest.mark.parametrize("compensate", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.filterwarnings("ignore::palette_core.errors.PaletteWarning")  # experts without rows
@pytest.mark.parametrize("turning", [False, True])
def test_routes_that_palettized_weights_choose_are_followed(turning, seed, compensate, monkeypatch):
    make = (lambda: Turning(seed, 1)) if turning else (lambda: Choosing(seed, 1))
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(5, 8, generator=generator)  # the unchanged model sends all batches one way
    given = [rows + 0.01 * torch.randn(5, 8, generator=generator) for _ in range(4)]
    options = {"compensate": compensate, "example": torch.randn(400, 8, generator=generator)}
    assert_same_either_way(make, monkeypatch, given=given, **options)


class Tied(Net):
    """The table that looks tokens up makes the logits, too."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8)

    def forward(self, x):
        x = self.table((x.abs() * 5).long().clamp(max=19)[:, 0])
        for block in self.blocks:
            x = block(x)
        return nn.functional.linear(self.head(x).repeat(1, 2), self.table.weight)


def test_a_tied_weight_is_fed_by_all_its_uses(never_over):
    never_over.undo()
    assert_same_either_way(Tied, never_over)


class Failing(Block):
    """Fails at the fifth batch."""

    def forward(self, x):
        x = super().forward(x)
        if len(x) == 13:
            raise ValueError("no room")
        return x


def test_a_run_that_fails_ends_the_others(monkeypatch):
    model = Net(Failing)
    given = [*batches(), torch.randn(13, 8)]
    with pytest.raises(CalibrationError, match=r"Net failed on calibration batch 5: .*no room"):
        palettized(model, monkeypatch, given=given)
    monkeypatch.undo()
    assert run_threads() == []
    assert not any(hasattr(module, "parametrizations") for module in model.modules())


def test_an_interrupt_ends_all_runs(monkeypatch):
    real, seen = feeding.Accumulator.add, []

    def add(self, *args):
        seen.append(1)
        if len(seen) == 9:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(feeding.Accumulator, "add", add)
    model = Net(Keeping)
    with pytest.raises(KeyboardInterrupt):
        palettized(model, monkeypatch)
    assert run_threads() == []
    assert model.blocks[0].found == []
    assert float(model.blocks[0].count) == 0.0


def test_where_no_thread_starts_runs_start_over(monkeypatch):
    truth, _ = palettized(Net(), monkeypatch)

    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    found, _ = palettized(Net(), monkeypatch)
    assert all(torch.equal(found[name], weight) for name, weight in truth.items())


def test_modes_around_a_calibration_hold_in_its_runs(monkeypatch):
    class Seeing(Block):
        def forward(self, x):
            assert torch.is_autocast_enabled("cpu")
            assert torch.get_autocast_dtype("cpu") is torch.bfloat16
            assert torch.get_default_device() == torch.device("cpu", 0)
            return super().forward(x)

    with torch.autocast("cpu", torch.bfloat16), torch.device("cpu", 0):
        palettized(Net(Seeing), monkeypatch)
    assert torch.get_default_device() == torch.device("cpu")
