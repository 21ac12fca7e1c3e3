"""What is freed goes back to the system when it is asked to, by the system's own account."""

import subprocess
import sys

import pytest

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


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_what_another_thread_has_freed_is_handed_back():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 50_000_000


PAGES = """
import resource
import numpy as np
from palette_core._common.freed_memory import keep_freed

def found():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        [np.ones(3_000_000, np.uint8) for _ in range(6)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found()
before = found()
keep_freed(12_000_000)
found()
print(before, found())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_what_is_kept_is_not_found_page_by_page_again():
    done = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 10 * after < before
