"""Light part of the plug-in, for its listing: the command, and nothing heavy.

A package of its own, because importing any part of ``transformers_bridge`` imports that package,
which registers its quantizer with transformers and so has to import it.
"""

from __future__ import annotations

from typing import Any

from palette_core.plugins import INTERFACE_VERSION, Command, CommandEntry, hookimpl


def _make(options: Any) -> Command:
    del options
    from transformers_bridge.command import ExportDecoder

    return ExportDecoder()


@hookimpl
def palette_core_commands() -> list[CommandEntry]:
    """``palette export-decoder``."""
    return [
        CommandEntry(
            name="export-decoder",
            summary="write a language model of transformers with its cache in states",
            interface=INTERFACE_VERSION,
            factory=_make,
        )
    ]
