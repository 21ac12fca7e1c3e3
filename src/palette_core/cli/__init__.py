"""The ``palette`` command."""

from palette_core.cli.app import main

__all__ = ["main"]
