"""Programs of tests in a process of their own: what a signal ends there is not the run of tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_FIRST = """
import signal
for number in (signal.SIGINT, getattr(signal, "SIGTERM", None), getattr(signal, "SIGHUP", None)):
    if number is not None:  # a run in the background inherits ignored ones
        signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
"""


def run_alone(program: str, *folders: Path, seconds: float = 300) -> str:
    """Run a program with all signals as they are by default, and return what it has printed.

    Args:
        program: source code.
        folders: where its modules are looked for, before all others.
        seconds: after which it is ended.

    Raises:
        AssertionError: it failed, or a signal ended it.
    """
    path = os.pathsep.join([*map(str, folders), *sys.path])
    ran = subprocess.run(
        [sys.executable, "-c", _FIRST + program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert ran.returncode == 0, f"ended with {ran.returncode}:\n{ran.stdout}\n{ran.stderr[-4000:]}"
    return ran.stdout
