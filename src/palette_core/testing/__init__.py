"""The contract kit: what a plug-in must do, as checks that its author runs.

`parametrize_contract` turns a test function of the author's own suite into one test per check,
for every kind of plug-in that a distribution registers. It needs pytest, and hypothesis for
granularities: ``pip install 'palette-core[testing]'``.
"""

from palette_core.errors import ContractError
from palette_core.testing._kit import Calls, Check, Reader
from palette_core.testing.contract import ContractTest, all_checks, parametrize_contract

__all__ = [
    "Calls",
    "Check",
    "ContractError",
    "ContractTest",
    "Reader",
    "all_checks",
    "parametrize_contract",
]
