"""A decoded weight that is kept between calls, for as long as nothing it was made of changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from palette_core._common.warned import warn
from palette_core.storage.packed_weight import PaletteModule

Versions = tuple[tuple[Tensor, int], ...]
"""Tensors, and how often each had been written to."""


def versions(*parts: Tensor | None) -> Versions:
    """Return what tells later, by `same`, whether one of the tensors has changed."""
    return tuple(
        (part, 0 if part.is_inference() else part._version) for part in parts if part is not None
    )


def same(a: Versions, b: Versions) -> bool:
    """Return whether both are of the same tensors with the same values."""
    return len(a) == len(b) and all(x is y and v == w for (x, v), (y, w) in zip(a, b, strict=True))


def is_recorded(tensor: Tensor) -> bool:
    """Return whether a graph is being recorded: the computation must then be in it."""
    return (
        type(tensor) is not Tensor or torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


def _run_while_recorded(function: Callable[[], None]) -> Callable[[], None]:
    """Mark a function as ``torch.compiler.assume_constant_result`` does, without its import.

    That loads the compiler, which takes longer than torch and most models need to be palettized.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


# Run by dynamo (strict=True) while it records, which leaves no trace of a warning otherwise.
@_run_while_recorded
def warn_of_dense_program() -> None:
    """Warn if `torch.export` or `torch.jit.trace` records a prepared model.

    Exports of palette_core finalize first, so that none of them comes here. The sentence names no
    weight, for Python to show it once.
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        warn(
            "a prepared model is being exported or traced: converters make dense weights of what "
            "it decodes, and the file is as large as without palettes. Call "
            "KMeansPalettizer(model).export(path, example_inputs, backend=...), or finalize(...) "
            "and convert what that returns",
            stacklevel=1,
        )


@final
class KeptWeight:
    """The dense weight that a palette makes, decoded anew where a part of it has changed."""

    def __init__(self) -> None:
        self._weight: Tensor | None = None
        self._of: Versions = ()
        self._version = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptWeight, ()  # copies decode for themselves

    def of(self, palette: PaletteModule) -> Tensor:
        """Return the decoded weight, from the last call where nothing has changed."""
        now = versions(
            palette.indices, palette.lut, palette.lut_scale, palette.lut_zero_point, palette.scale
        )
        kept = self._weight
        # Its own version too: a caller that has written to the weight has changed this copy only.
        written = kept is not None and kept._version != self._version
        if kept is None or written or not same(now, self._of):
            with torch.inference_mode(mode=False), torch.no_grad():
                kept = self._weight = palette.palettized().decode()
            self._of, self._version = now, kept._version
        return kept
