"""The contract kit on the OpenVINO backend, its files read by the reader of this plug-in."""

from __future__ import annotations

from openvino_backend import read_weights
from palette_core.testing import parametrize_contract


@parametrize_contract("palette-core-openvino", readers={"openvino": read_weights})
def test_contract(check) -> None:
    check()
