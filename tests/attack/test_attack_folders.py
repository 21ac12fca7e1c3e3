"""A few of the damaged folders and killed runs of `run.py`."""

import os

import pytest
from folder_attack import block_kills, kills, mutants


def test_damaged_folders_are_refused_or_palettized_and_any_change_is_found():
    outcome = mutants(60)
    assert not outcome.broken, "\n".join(outcome.broken)
    assert outcome.counts["dense refused"] > 10
    assert outcome.counts["palettized refused"] > 10


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_runs_are_gone_on_from_and_write_the_same_files():
    outcome = kills(12)
    assert not outcome.broken, "\n".join(outcome.broken)
    assert any(kind != "killed 0 times" for kind in outcome.counts)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_calibrations_are_gone_on_from_and_write_the_same_files():
    outcome = block_kills(5)
    assert not outcome.broken, "\n".join(outcome.broken)
    assert any(not kind.endswith(" 0 times") for kind in outcome.counts)
