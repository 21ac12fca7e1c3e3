"""Work side by side: every item once, errors told, and nothing begun that nobody waits for."""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from palette_core._common import threads
from palette_core._common.scratch import scratch


@pytest.fixture(params=[1, 2, 4])
def count(request, monkeypatch):
    monkeypatch.setattr(threads, "thread_count", lambda: request.param)
    return request.param


def test_every_item_comes_once_with_its_result(count):
    found = dict(threads.side_by_side(lambda item: item * item, range(50)))
    assert found == {item: item * item for item in range(50)}
    assert list(threads.side_by_side(str, [])) == []


def test_the_caller_works_along_and_starts_no_more_threads_inside(monkeypatch):
    monkeypatch.setattr(threads, "thread_count", lambda: 2)
    both = threading.Barrier(2, timeout=30)
    seen = []

    def work(item):
        both.wait()  # two are at work at once
        seen.append((threading.current_thread(), threads.on_a_thread()))
        return threads.map_threads(lambda _: threading.current_thread(), [0, 1])

    for _, inside in threads.side_by_side(work, range(4)):
        assert not threads.on_a_thread()
        assert len(set(inside)) == 1
    workers = {thread for thread, _ in seen}
    assert len(workers) == 2
    assert threading.current_thread() in workers
    assert all(on_a_thread for _, on_a_thread in seen)


def test_the_caller_begins_at_the_end_and_its_helper_at_the_front(monkeypatch):
    monkeypatch.setattr(threads, "thread_count", lambda: 2)
    both = threading.Barrier(2, timeout=30)
    mine, begun = threading.get_ident(), {True: [], False: []}

    def work(item):
        begun[threading.get_ident() == mine].append(item)
        both.wait()

    assert sorted(item for item, _ in threads.side_by_side(work, range(6))) == [*range(6)]
    assert begun == {True: [5, 4, 3], False: [0, 1, 2]}


def test_an_error_is_raised_and_the_rest_does_not_begin(count):
    begun = []

    def work(item):
        begun.append(item)
        if item == 3:
            raise ValueError("the fourth")
        time.sleep(0.001)

    with pytest.raises(ValueError, match="the fourth"):
        list(threads.side_by_side(work, range(1000)))
    assert len(begun) < 1000


def test_an_error_of_a_helper_ends_the_callers_work(monkeypatch):
    monkeypatch.setattr(threads, "thread_count", lambda: 2)
    begun, failed, mine = [], threading.Event(), threading.get_ident()

    def work(item):
        begun.append(item)
        if threading.get_ident() != mine:
            failed.set()
            raise ValueError("beside")
        assert failed.wait(30)

    with pytest.raises(ValueError, match="beside"):
        list(threads.side_by_side(work, range(100_000)))
    assert len(begun) < 100_000


def test_nothing_begins_once_nobody_asks_for_more(count):
    begun = []

    def work(item):
        begun.append(item)
        time.sleep(0.001)

    asked = threads.side_by_side(work, range(1000))
    next(asked)
    asked.close()
    so_far = len(begun)
    assert so_far < 1000
    assert list(asked) == []
    assert len(begun) == so_far


def test_results_come_in_the_order_of_their_items(count):
    assert threads.map_threads(lambda item: item * item, range(200)) == [i * i for i in range(200)]
    assert threads.map_threads(str, []) == []


def test_the_first_error_is_raised_and_what_is_left_does_not_begin(count):
    begun = []

    def work(item):
        begun.append(item)
        time.sleep(0.001)
        if item >= 3:
            raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 3"):
        threads.map_threads(work, range(1000))
    assert len(begun) < 20


@pytest.mark.parametrize("where", ["the caller", "a helper"])
def test_an_interrupt_ends_work_on_all_threads(where, monkeypatch):
    monkeypatch.setattr(threads, "thread_count", lambda: 2)
    both, begun, mine = threading.Barrier(2, timeout=30), [], threading.get_ident()

    def work(item):
        begun.append(item)
        if len(begun) <= 2:
            both.wait()
        if (threading.get_ident() == mine) == (where == "the caller"):
            raise KeyboardInterrupt
        time.sleep(0.001)

    with pytest.raises(KeyboardInterrupt):
        threads.map_threads(work, range(100_000))
    assert len(begun) < 100_000
    assert not threads.on_a_thread()
    assert threads.map_threads(str, range(3)) == ["0", "1", "2"]


def test_scratch_lasts_for_all_items_of_a_thread_and_no_longer(monkeypatch):
    monkeypatch.setattr(threads, "thread_count", lambda: 2)
    both = threading.Barrier(2, timeout=30)

    def work(item):
        if item < 2:
            both.wait()
        there = scratch("piece", (1 << 16,), "u1")
        return threading.get_ident(), there.ctypes.data, weakref.ref(there.base)

    found = threads.map_threads(work, range(20))
    assert len({thread for thread, _, _ in found}) == 2
    assert len({(thread, place) for thread, place, _ in found}) == 2
    assert all(kept() is None for _, _, kept in found)


def test_callers_on_several_threads_do_not_wait_for_each_other(monkeypatch):
    monkeypatch.setattr(threads, "thread_count", lambda: 2)
    all_there = threading.Barrier(4, timeout=30)

    def call(number):
        threads.map_threads(lambda item: all_there.wait() if item == 0 else None, range(4))
        return number

    # Four callers with a helper each: more than there may be threads that stay.
    with ThreadPoolExecutor(4) as callers:
        assert list(callers.map(call, range(4))) == [0, 1, 2, 3]
