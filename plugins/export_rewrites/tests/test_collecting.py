"""Garbage is looked for after an export, and as before it."""

import gc

import pytest

from export_rewrites import collecting_later


@pytest.mark.parametrize("enabled", [True, False])
def test_looks_for_garbage_are_put_off_and_taken_up_again(enabled) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(KeyError), collecting_later():
            raise KeyError(gc.isenabled())
        assert gc.isenabled() is enabled
        with collecting_later():
            assert not gc.isenabled()
            with collecting_later():
                pass
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
