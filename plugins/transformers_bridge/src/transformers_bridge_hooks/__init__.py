"""Light part of the plug-in, for its listing: its commands, and nothing heavy.

A package of its own, because importing any part of ``transformers_bridge`` imports that package,
which registers its quantizer with transformers and so has to import it.
"""

from __future__ import annotations

from typing import Any

from palette_core.plugins import INTERFACE_VERSION, Command, CommandEntry, hookimpl


def _decoder(options: Any) -> Command:
    del options
    from transformers_bridge.command import export_decoder_command

    return export_decoder_command()


def _speech(options: Any) -> Command:
    del options
    from transformers_bridge.command import export_speech_command

    return export_speech_command()


@hookimpl
def palette_core_commands() -> list[CommandEntry]:
    """``palette export-decoder`` and ``palette export-speech``."""
    return [
        CommandEntry(
            name="export-decoder",
            summary="write a language model of transformers with its cache in states",
            interface=INTERFACE_VERSION,
            factory=_decoder,
        ),
        CommandEntry(
            name="export-speech",
            summary="write a speech model of transformers as two functions, with caches",
            interface=INTERFACE_VERSION,
            factory=_speech,
        ),
    ]
