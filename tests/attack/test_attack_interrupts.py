"""A few of the interrupts of `run.py`."""

from interrupt_attack import attack, attack_the_end


def test_an_interrupt_anywhere_leaves_the_model_as_before_or_as_after():
    outcome = attack(60)
    assert not outcome.broken, "\n".join(outcome.broken)
    assert outcome.counts["interrupted"] > 40


def test_an_interrupt_while_contexts_are_left():
    outcome = attack_the_end("load_checkpoint", 30)
    assert not outcome.broken, "\n".join(outcome.broken)
    assert outcome.counts["interrupted"] > 25
