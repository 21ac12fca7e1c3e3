"""SIGTERM and SIGHUP end a program as Ctrl-C does, workers included."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from own_process import run_alone

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of Unix")

PROGRAM = """
import os, sys, time
from pathlib import Path
import joblib
from palette_core._common.files import atomic_path
from palette_core.cli.interrupts import ends_like_an_interrupt

def work(folder, number):
    (Path(folder) / f"worker{number}.pid").write_text(str(os.getpid()))
    time.sleep(600)

folder = sys.argv[1]
with ends_like_an_interrupt() as ending:
    try:
        with atomic_path(Path(folder) / "out") as fresh:
            fresh.write_text("half")
            joblib.Parallel(2)(joblib.delayed(work)(folder, number) for number in range(2))
    except KeyboardInterrupt:
        pass
sys.exit(128 + ending.signal if ending.signal else 0)
"""


TWICE = """
import os, signal, time
from palette_core.cli.interrupts import ends_like_an_interrupt

seen = []
with ends_like_an_interrupt() as ending:
    try:
        os.kill(os.getpid(), {number})
        time.sleep(5)
    except KeyboardInterrupt:
        seen.append("interrupted")
        os.kill(os.getpid(), {number})  # while things are put back
        seen.append("went on")
assert seen == ["interrupted", "went on"], seen
assert ending.signal == {number}, ending.signal
assert signal.getsignal({number}) is signal.SIG_DFL
"""

THEIRS = """
import os, signal, time
from palette_core.cli.interrupts import ends_like_an_interrupt

mine = []
signal.signal(signal.SIGTERM, lambda *_: mine.append("mine"))
with ends_like_an_interrupt() as ending:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
assert mine == ["mine"], mine
assert ending.signal is None, ending.signal
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_interrupts_and_later_ones_do_not(number):
    run_alone(TWICE.format(number=int(number)))


def test_signals_that_somebody_handles_stay_theirs():
    run_alone(THEIRS)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_workers_end_with_the_program(tmp_path):
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)])
    try:
        for _ in range(600):
            workers = [path.read_text() for path in tmp_path.glob("worker*.pid")]
            if len(workers) == 2 and all(workers):
                break
            time.sleep(0.1)
        assert len(workers) == 2
        program.send_signal(signal.SIGTERM)
        assert program.wait(60) == 128 + signal.SIGTERM
    finally:
        program.kill()
    for _ in range(100):
        alive = [worker for worker in workers if is_alive(int(worker))]
        if not alive:
            break
        time.sleep(0.1)
    assert not alive
    assert sorted(os.listdir(tmp_path)) == ["worker0.pid", "worker1.pid"]
