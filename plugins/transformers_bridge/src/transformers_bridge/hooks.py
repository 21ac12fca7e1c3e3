"""Registers the command; transformers is imported when it runs, not before."""

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
