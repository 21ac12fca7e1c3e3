"""A few of the kills and full disks of `run.py`."""

import os

import pytest
from file_attack import full_disks, kills


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_kill_anywhere_leaves_the_older_and_the_next_run_clears_away():
    outcome = kills(40)
    assert not outcome.broken, "\n".join(outcome.broken)
    assert outcome.counts["killed"] > 20


def test_a_full_disk_anywhere_leaves_the_older_and_raises_oserror():
    outcome = full_disks(40)
    assert not outcome.broken, "\n".join(outcome.broken)
    assert outcome.counts["refused"] > 20
