"""Things are put back to the end, whatever interrupts."""

import pytest

from palette_core._common.undoing import undone


class At:
    """Undoes, and is interrupted at the n-th call, before or after it."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.left, self.after, self.done = at, after, []

    def __call__(self, item: int) -> None:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise KeyboardInterrupt
        self.done.append(item)
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_interrupt_in_the_middle_does_not_keep_the_rest(at, after):
    undo, items = At(at, after=after), [1, 2, 3]
    with pytest.raises(KeyboardInterrupt), undone(items, undo):
        pass
    assert list(dict.fromkeys(undo.done)) == [3, 2, 1]
    assert not items


def test_errors_of_the_block_and_items_added_in_it():
    done = []
    items = [1]

    def fail() -> None:
        with undone(items, done.append):
            items.append(2)
            raise ValueError("block")

    with pytest.raises(ValueError, match="block"):
        fail()
    assert done == [2, 1]
