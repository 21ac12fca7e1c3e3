"""A few of the mutants of `run.py`."""

import pytest
from mutant_attack import attack


@pytest.mark.slow
def test_mutants_are_refused_or_say_what_the_file_said():
    outcome = attack(200)
    assert not outcome.broken, "\n".join(outcome.broken)
    for kind in ("Load", "Commands", "Sensitivities", "Cache"):
        assert outcome.counts[f"{kind} refused"] > 0
        assert outcome.counts[f"{kind} the same"] > 0
