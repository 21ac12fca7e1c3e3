"""The contract kit on the Core AI backend, its files read by the reader of this plug-in."""

from __future__ import annotations

from coreai_backend import read_weights
from palette_core.testing import parametrize_contract


@parametrize_contract("palette-core-coreai", readers={"coreai": read_weights})
def test_contract(check) -> None:
    check()
