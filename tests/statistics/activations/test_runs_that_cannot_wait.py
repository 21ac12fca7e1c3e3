"""Models whose runs may not take turns: their inputs come from runs that start over."""

import asyncio
import threading
import warnings

import pytest
import torch
from run_threads import run_threads
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core.statistics.activations import feeding, threads

CONFIG = KMeansPalettizerConfig.from_dict(
    {
        "kmeans_palettization_config": {
            "global_config": {"op_state_spec": {"weight": {"n_bits": 2, "algorithm": "gptq"}}}
        }
    }
)
_LOCK = threading.Lock()
_OWN = threading.local()


class Net(nn.Module):
    """Two layers, in surroundings of their own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def around(self):
        return torch.no_grad()

    def forward(self, x):
        with self.around():
            return self.b(torch.relu(self.a(x)))


class Locking(Net):
    def around(self):
        return _LOCK


class Filtering(Net):
    def around(self):
        return warnings.catch_warnings()


class Attending(Net):
    def around(self):
        return sdpa_kernel(SDPBackend.MATH)


class OfOneThread(Net):
    def around(self):
        return _OWN.context


class OfMainThread(Net):
    def around(self):
        asyncio.Runner().get_loop()
        assert threading.current_thread() is threading.main_thread()
        return torch.no_grad()


def weights(model, given):
    palettizer = KMeansPalettizer(model.eval(), CONFIG)
    palettizer.calibrate(given, sequential=True)
    palettizer.prepare(given[0], show_progress=False)
    assert run_threads() == []
    return [model.a.weight.detach(), model.b.weight.detach()]


def batches(n=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(12, 8, generator=generator) for _ in range(n)]


@pytest.fixture
def starting_over(monkeypatch):
    calls, real = [], feeding.Feeder.start_over
    monkeypatch.setattr(feeding.Feeder, "start_over", lambda s: (calls.append(1), real(s))[1])
    monkeypatch.setattr(threads, "_PATIENCE", 0.5)
    return calls


@pytest.mark.parametrize("net", [Locking, Filtering, Attending, OfOneThread, OfMainThread])
def test_runs_start_over_where_taking_turns_fails(net, starting_over):
    _OWN.context = torch.no_grad()
    truth = weights(Net(), batches())
    assert starting_over == []
    before = threads.settings()
    found = weights(net(), batches())
    assert starting_over == [1]
    assert all(torch.equal(a, b) for a, b in zip(found, truth, strict=True))
    assert threads.settings() == before
    assert not _LOCK.locked()


def test_an_interrupt_ends_runs_that_wait_for_each_other(starting_over, monkeypatch):
    real, waits = threads._Signal.wait, []

    def wait(self, timeout=-1):
        if not real(self, timeout):
            waits.append(1)
            raise KeyboardInterrupt
        return True

    monkeypatch.setattr(threads._Signal, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        weights(Locking(), batches())
    assert waits == [1]
    assert starting_over == []
    assert run_threads() == []
    assert not _LOCK.locked()


@pytest.mark.parametrize("name", ["_MOST_WAITING", "_MOST_THREADS"])
def test_there_are_not_more_threads_than_the_system_bears(name, starting_over, monkeypatch):
    of_each = torch.get_num_threads() if name == "_MOST_THREADS" else 1
    monkeypatch.setattr(threads, name, 5 * of_each)
    weights(Net(), batches(2))
    assert starting_over == []
    weights(Net(), batches(3))
    assert starting_over == [1]
