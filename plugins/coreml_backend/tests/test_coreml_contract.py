"""The core's own checks of an export backend."""

from __future__ import annotations

from coreml_backend import read_weights
from palette_core.testing import parametrize_contract


@parametrize_contract(
    distribution="palette-core-coreml",
    options={"backend/coreml": [{"compute_precision": "float32"}]},
    readers={"coreml": read_weights},
)
def test_contract(check):
    check()
