"""What is freed goes back to the system when it is asked to, by the system's own account."""

import os
import subprocess
import sys

import pytest

from palette_core._common import freed_memory

PROGRAM = """
import threading
from pathlib import Path
from palette_core._common.freed_memory import hand_back

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def work():
    pieces = [bytearray(b"x") * 50_000 for _ in range(2000)]  # too small for maps of their own
    last = bytearray(b"x") * 50_000  # keeps what is below it in the heap of this thread
    del pieces
    made.set()
    leave.wait()

made, leave = threading.Event(), threading.Event()
thread = threading.Thread(target=work)
thread.start()
made.wait()
before = resident()
hand_back()
print(before - resident())
leave.set()
"""


@pytest.mark.skipif(freed_memory._heap() is None, reason="no glibc")
def test_what_another_thread_has_freed_is_handed_back():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 50_000_000


PAGES = """
import resource
from pathlib import Path
import numpy as np
from palette_core._common import freed_memory
from palette_core._common.freed_memory import freed_is_kept, hand_back_much

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def found(blocks=3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        [np.ones(40_000_000, np.uint8) for _ in range(blocks)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

freed_memory._KEPT = 64_000_000
print(found())
before = resident()
with freed_is_kept():
    held = [np.ones(40_000_000, np.uint8) for _ in range(10)]
    hand_back_much()
    with freed_is_kept():
        del held[1:9:2]  # four, and what is held lies above
        print(found())
        print(resident() - before)
    held += [np.ones(50_000_000, np.uint8) for _ in range(3)]  # for which no room is free
    print(resident() - before)
    hand_back_much()
    print(resident() - before)
    held.clear()
print(resident() - before)
held += [np.empty(40_000_000, np.uint8) for _ in range(14)]  # room that is free is used first
print(found(blocks=1))
print(resident() - before)
"""


def keeps():
    heap = freed_memory._heap()
    return heap is not None and heap.can_tell


def figures(before="", **environment):
    # dask sets one of them for all, before it starts workers.
    usual = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    usual.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", before + PAGES],
        capture_output=True,
        text=True,
        check=True,
        env={**usual, "NUMPY_MADVISE_HUGEPAGE": "0", **environment},
    )
    return [int(line) for line in done.stdout.split()]


@pytest.mark.skipif(not keeps(), reason="no glibc, or one before 2.33")
def test_what_is_kept_is_not_found_page_by_page_again():
    usual, kept, held, more, less, left, later, after = figures()
    assert 3 * kept < usual
    assert 390_000_000 < held < 410_000_000  # it found room in what was freed
    assert 540_000_000 < more < 560_000_000
    assert 380_000_000 < less < 400_000_000
    assert left < 10_000_000
    assert 3 * later > 0.9 * usual
    assert after < 10_000_000


@pytest.mark.skipif(not keeps(), reason="no glibc, or one before 2.33")
@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_MMAP_THRESHOLD_": "1000000"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"}],
)
def test_what_the_environment_says_about_memory_stands(environment):
    usual, kept, *_ = figures(**environment)
    assert kept > 0.9 * usual


@pytest.mark.skipif(not keeps(), reason="no glibc, or one before 2.33")
def test_what_is_set_for_other_processes_changes_nothing():
    usual, kept, *_ = figures('import os; os.environ["MALLOC_TRIM_THRESHOLD_"] = "65536"')
    assert 3 * kept < usual


def test_where_it_cannot_be_read_the_present_environment_is_heeded(monkeypatch, tmp_path):
    monkeypatch.setattr(freed_memory, "_ENVIRONMENT", tmp_path / "environ")
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "1")
    assert freed_memory._is_set_by_user()
    (tmp_path / "environ").write_bytes(b"PATH=/bin\0GLIBC_TUNABLES=glibc.malloc.check=0\0")
    assert freed_memory._is_set_by_user()
    (tmp_path / "environ").write_bytes(b"PATH=/bin\0\xff=\0A=MALLOC_MMAP_MAX_\0")
    assert not freed_memory._is_set_by_user()


OLDER = """
from palette_core._common import freed_memory

freed_memory._Heap.can_tell = False  # a glibc that cannot say what is in use
with freed_memory.freed_is_kept():
    freed_memory.hand_back_much()
    assert freed_memory._heap()._users == 0
freed_memory.hand_back()
"""


@pytest.mark.skipif(freed_memory._heap() is None, reason="no glibc")
def test_where_nothing_is_told_nothing_is_kept():
    subprocess.run([sys.executable, "-c", OLDER], check=True)
