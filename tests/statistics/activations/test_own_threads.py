"""Threads of OpenMP of runs that wait, beside those of the thread they leave their work to."""

import contextlib
import math
import threading

import pytest
import torch
from run_threads import run_threads

from palette_core.statistics.activations import own_threads
from palette_core.statistics.activations.threads import Waiting
from palette_core.statistics.activations.watch import Watch


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def counts(rounds, around=contextlib.nullcontext):
    """Return how many threads a run has at each of its rounds, and others when it waits."""
    inside, outside = [], []

    def run(waiting):
        for _ in range(rounds):
            torch.ones(8).add_(1.0)
            inside.append(torch.get_num_threads())
            waiting.wait()

    with around():
        waiting = Waiting(run)
        while not waiting.ended:
            waiting.resume()
            outside.append(torch.get_num_threads())
            fresh = threading.Thread(target=lambda: outside.append(torch.get_num_threads()))
            fresh.start()
            fresh.join()
    waiting.close()
    assert run_threads() == []
    return inside, outside


def test_a_run_that_leaves_its_work_to_others_has_one_thread():
    inside, outside = counts(3)
    assert inside == [1, 1, 1]
    assert set(outside) == {3}


def test_one_that_computes_much_itself_takes_all(monkeypatch):
    monkeypatch.setattr(own_threads, "_MUCH", -math.inf)
    inside, outside = counts(3)
    assert inside[0] == 1  # nothing is known yet
    assert inside[-1] == 3
    assert set(outside) == {3}


def test_one_that_has_to_compute_what_is_large_itself_takes_all_at_once():
    inside = []

    def run(waiting):
        with Watch({}, {}, None, None, waiting.compute):
            large = torch.ones(1 << 16)
            for enter in (contextlib.nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)):
                with enter():
                    large.exp()
                    inside.append(torch.get_num_threads())

    waiting = Waiting(run)
    waiting.resume()
    waiting.close()
    assert inside == [1, 3]


def test_one_that_leaves_nothing_to_others_has_all_from_the_beginning():
    inside, outside = counts(2, lambda: torch.autocast("cpu", torch.bfloat16))
    assert inside == [3, 3]
    assert set(outside) == {3}


def test_threads_are_put_back_where_ctrl_c_comes_as_a_run_begins(monkeypatch):
    waiting = Waiting(lambda waiting: waiting.wait())
    wait, is_set, left = waiting._ready.wait, waiting._ready.is_set, [KeyboardInterrupt()]

    def interrupted():
        if left:
            raise left.pop()
        return wait()

    monkeypatch.setattr(waiting._ready, "is_set", lambda: not left and is_set())
    monkeypatch.setattr(waiting._ready, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        waiting.resume()
    waiting.close()
    assert run_threads() == []
    found = []
    fresh = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    fresh.start()
    fresh.join()
    assert found == [torch.get_num_threads()] == [3]
