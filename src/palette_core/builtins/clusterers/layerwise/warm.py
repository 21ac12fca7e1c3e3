"""Kernels of a layer's solution, compiled ahead of use: while the model runs on its data.

Named are those that the interpreter always calls, with the types that a weight without fitted
scales comes in. What they call comes along. Left out are scalar k-means, which is called first, and
what solves for entries, of which there is a form for tables of few: they are compiled here while
the other process compiles these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from palette_core._common.kernels import compile_ahead
from palette_core.builtins.clusterers.layerwise import entries, feedback, kernels, products

_TYPES = {
    "n": "int64",
    "f": "float64",
    "F": "float32[::1]",
    "FF": "float32[:,::1]",
    "FFF": "float32[:,:,::1]",
    "D": "float64[::1]",
    "DD": "float64[:,::1]",
    "DDD": "float64[:,:,::1]",
    "DDDD": "float64[:,:,:,::1]",
    "L": "int64[::1]",
    "I": "int32[::1]",
    "II": "int32[:,::1]",
    "UU": "uint8[:,::1]",
    "BB": "boolean[:,::1]",
}


def _types(names: str) -> str:
    return f"({', '.join(_TYPES[name] for name in names.split())},)"


FED_BACK: Mapping[Any, str] = {
    products.symmetrize: _types("FFF"),
    kernels.subtract_decoded: _types("FF II FFF FF n UU FF n n"),
    products.multiply_half: _types("FF I FFF FF n n"),
    kernels.row_costs: _types("FF FF F D n n"),
    products.pick: _types("FF I f DD n n"),
    products.factor_panel: _types("DD n n DDD"),
    products.subtract_panel: _types("DD n n DDD n n"),
    products.turn_back: _types("DD FF F n n"),
    feedback.feed_back: _types("FF I F II FFF FF II FFF FF n BB UU FF FF D n n"),
    entries.solve: _types("DDDD DDD L DDD n n"),
}
"""What ``gptq`` always needs, in the order of use."""

DESCENDED: Mapping[Any, str] = {
    **FED_BACK,
    kernels.descend: _types("FF FF FF I F FFF II FFF FF n BB UU FF n n n"),
}
"""What ``lnq`` always needs, in the order of use."""


def warm_up_feedback() -> None:
    """Let another process compile what ``gptq`` needs, where it is not compiled yet."""
    compile_ahead(f"{__name__}:FED_BACK", FED_BACK)


def warm_up_descent() -> None:
    """Let another process compile what ``lnq`` needs, where it is not compiled yet."""
    compile_ahead(f"{__name__}:DESCENDED", DESCENDED)
