"""Registers the algorithms that look at the layers' inputs."""

from __future__ import annotations

from typing import Any

from palette_core.builtins.clusterers.layerwise.options import GptqOptions, LnqOptions
from palette_core.plugins import INTERFACE_VERSION, Clusterer, ClustererEntry, hookimpl


def _gptq(options: Any) -> Clusterer:
    from palette_core.builtins.clusterers.layerwise.clusterer import Gptq

    return Gptq(options)


def _lnq(options: Any) -> Clusterer:
    from palette_core.builtins.clusterers.layerwise.clusterer import Lnq

    return Lnq(options)


def _warm_up_feedback() -> None:
    from palette_core.builtins.clusterers.layerwise.warm import warm_up_feedback

    warm_up_feedback()


def _warm_up_descent() -> None:
    from palette_core.builtins.clusterers.layerwise.warm import warm_up_descent

    warm_up_descent()


def _damping(options: Any) -> float | None:
    return options.damping  # type: ignore[no-any-return]


@hookimpl
def palette_core_clusterers() -> list[ClustererEntry]:
    """Error feedback, and coordinate descent, on the output of a layer."""
    return [
        ClustererEntry(
            name="gptq",
            summary="error feedback column by column; needs calibration",
            interface=INTERFACE_VERSION,
            options=GptqOptions,
            factory=_gptq,
            supports_vector=True,
            needs_moments=True,
            damping=_damping,
            fits_quantized=True,
            keeps_zeros=True,
            warm_up=_warm_up_feedback,
        ),
        ClustererEntry(
            name="lnq",
            summary="coordinate descent and least squares on the output error; needs calibration",
            interface=INTERFACE_VERSION,
            options=LnqOptions,
            factory=_lnq,
            supports_vector=True,
            needs_moments=True,
            damping=_damping,
            fits_quantized=True,
            keeps_zeros=True,
            warm_up=_warm_up_descent,
        ),
    ]
