"""Which architectures are tried."""

from __future__ import annotations

import importlib.util
import os

from further import FURTHER
from language import LANGUAGE, MORE_LANGUAGE
from own import OWN
from painting import PAINTING
from record import Architecture
from seeing import MORE_SEEING, SEEING
from timm_nets import TIMM


def tried() -> list[Architecture]:
    """Return those of CI, or all with PALETTE_ALL_ARCHITECTURES=1; what is not installed aside."""
    found = [*OWN, *LANGUAGE, *SEEING]
    if os.environ.get("PALETTE_ALL_ARCHITECTURES"):
        found += [*MORE_LANGUAGE, *MORE_SEEING, *FURTHER, *PAINTING, *TIMM]
    return [a for a in found if a in OWN or importlib.util.find_spec(_library(a)) is not None]


def _library(architecture: Architecture) -> str:
    first = architecture.name.partition(" ")[0]
    return first if first in ("diffusers", "timm") else "transformers"
