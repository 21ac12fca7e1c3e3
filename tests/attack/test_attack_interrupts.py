"""A few of the interrupts of `run.py`."""

import json
from pathlib import Path

import pytest
from own_process import run_alone

pytestmark = pytest.mark.slow

ATTACK = """
import json
from interrupt_attack import attack, attack_the_end

outcome = {call}
print(json.dumps([outcome.counts["interrupted"], outcome.broken]))
"""


def interrupted(call: str) -> tuple[int, list[str]]:
    """Return how many calls were interrupted, and what is wrong with a model afterwards."""
    printed = run_alone(ATTACK.format(call=call), Path(__file__).parent)
    count, broken = json.loads(printed.splitlines()[-1])
    return count, broken


def test_an_interrupt_anywhere_leaves_the_model_as_before_or_as_after():
    count, broken = interrupted("attack(60)")
    assert not broken, "\n".join(broken)
    assert count > 40


def test_an_interrupt_while_contexts_are_left():
    count, broken = interrupted('attack_the_end("load_checkpoint", 30)')
    assert not broken, "\n".join(broken)
    assert count > 25
