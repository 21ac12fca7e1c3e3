"""The one way in which warnings of palette_core are issued."""

from __future__ import annotations

import warnings

from palette_core.errors import PaletteWarning


def warn(*sentences: str, stacklevel: int) -> None:
    """Issue a `PaletteWarning` for each sentence.

    Args:
        sentences: what to tell.
        stacklevel: as in `warnings.warn`, seen from the caller.
    """
    for sentence in sentences:
        warnings.warn(sentence, PaletteWarning, stacklevel=stacklevel + 1)
