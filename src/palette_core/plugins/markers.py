"""The markers by which pluggy knows the hooks of palette_core."""

from __future__ import annotations

import pluggy

PROJECT = "palette_core"
"""The name of the project in pluggy, and of the entry-point group that plug-ins use."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
