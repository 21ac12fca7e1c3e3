"""Threads of calibration runs, among those that a process has for other reasons."""

import threading


def run_threads() -> list[threading.Thread]:
    """Return those that have not ended; threads of kernels and of the test runner stay."""
    return [thread for thread in threading.enumerate() if thread.name == "palette_core run"]
