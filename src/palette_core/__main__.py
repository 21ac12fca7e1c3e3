"""``python -m palette_core`` is the ``palette`` command."""

from palette_core.cli import main

main()
