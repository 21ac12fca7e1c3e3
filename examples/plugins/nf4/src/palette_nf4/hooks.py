"""Registers the algorithm; torch is imported when it is picked."""

from palette_core.plugins import Clusterer, ClustererEntry, NoOptions, hookimpl


def _make(options: NoOptions) -> Clusterer:
    del options
    from palette_nf4.clusterer import NormalFloat

    return NormalFloat()


@hookimpl
def palette_core_clusterers() -> list[ClustererEntry]:
    """Fixed entries."""
    return [
        ClustererEntry(
            name="nf4",
            summary="fixed entries: quantiles of a normal distribution times a block's maximum",
            interface=1,
            factory=_make,
            supports_cuda=True,
        )
    ]
