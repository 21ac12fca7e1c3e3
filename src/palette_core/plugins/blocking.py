"""Block lists: what somebody wants left out, whatever is installed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from palette_core.errors import ConfigError, did_you_mean
from palette_core.plugins.kinds import KINDS

VARIABLE = "PALETTE_CORE_BLOCK"
"""Environment variable with the list, which processes that are started inherit."""


@dataclass(frozen=True)
class BlockList:
    """Distributions, and entries by kind and name, that are left out.

    Attributes:
        distributions: names, normalized as package indexes do.
        entries: such as ``"clusterer:kmeans1d"``.
    """

    distributions: frozenset[str] = frozenset()
    entries: frozenset[str] = frozenset()

    @classmethod
    def read(cls, text: str | None = None) -> BlockList:
        """Read a list with commas, such as ``"palette-nf4, clusterer:kmeans1d"``.

        Args:
            text: the list; None reads the environment variable.

        Raises:
            ConfigError: an item names a kind that does not exist.
        """
        text = os.environ.get(VARIABLE, "") if text is None else text
        items = [item.strip() for item in text.split(",") if item.strip()]
        known = [kind.slug for kind in KINDS]
        for item in items:
            kind, colon, _ = item.partition(":")
            if colon and kind not in known:
                raise ConfigError(
                    f"cannot block {item!r}: there is no kind {kind!r}{did_you_mean(kind, known)}; "
                    f"kinds are {', '.join(known)}"
                )
        return cls(
            frozenset(cls.normal(item) for item in items if ":" not in item),
            frozenset(item for item in items if ":" in item),
        )

    @staticmethod
    def normal(item: str) -> str:
        """Return an item as the list holds it."""
        return item if ":" in item else _normal(item)

    def has_distribution(self, name: str) -> bool:
        """Return whether all of a distribution is left out."""
        return _normal(name) in self.distributions


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
