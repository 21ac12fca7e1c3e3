"""Names of dtypes, and the 8-bit floats that torch computes with everywhere."""

from __future__ import annotations

from typing import Any

import torch

from palette_core.errors import did_you_mean

FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``"int8"`` for ``torch.int8``."""
    return str(dtype).removeprefix("torch.")


def parse_dtype(value: Any) -> Any:
    """Return the torch dtype that ``"int8"`` or ``"torch.int8"`` names; pass dtypes through."""
    if isinstance(value, str):
        found = getattr(torch, value.removeprefix("torch."), None)
        if not isinstance(found, torch.dtype):
            known = [each for each in vars(torch).values() if isinstance(each, torch.dtype)]
            names = [dtype_name(each) for each in known]
            raise ValueError(f"{value!r} is not a torch dtype{did_you_mean(value, names)}")
        return found
    return value
