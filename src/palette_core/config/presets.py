"""Ready-made configs: ``KMeansPalettizerConfig.presets.w4()`` and its kin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, Literal, TypeVar

from palette_core.config.op import states_of
from palette_core.config.spec import PalettizationSpec, PerGroupedChannelGranularity

ConfigT = TypeVar("ConfigT")


class Presets(Generic[ConfigT]):
    """Ready-made configs of one class, each for ``weight`` and ``in_proj_weight``."""

    def __init__(self, make: Callable[[Mapping[str, PalettizationSpec | None]], ConfigT]) -> None:
        self._make = make

    def w2(self, *, axis: Literal[0, 1] = 0, group_size: int = 16) -> ConfigT:
        """Return 2 bits per weight, one LUT per ``group_size`` channels along ``axis``."""
        return self._grouped(2, axis, group_size)

    def w3(self, *, axis: Literal[0, 1] = 0, group_size: int = 16) -> ConfigT:
        """Return 3 bits per weight, one LUT per ``group_size`` channels along ``axis``."""
        return self._grouped(3, axis, group_size)

    def w4(self, *, axis: Literal[0, 1] = 0, group_size: int = 16) -> ConfigT:
        """Return 4 bits per weight, one LUT per ``group_size`` channels along ``axis``."""
        return self._grouped(4, axis, group_size)

    def w4_block64(self) -> ConfigT:
        """Return 4 bits per weight, one LUT per tensor and a fitted scale for every 64 inputs.

        Of 4.25 bits with the scales. For weights without calibration data; channels whose inputs
        64 does not divide stay dense, with a warning.
        """
        return self._make(states_of(PalettizationSpec(n_bits=4, scale_block_size=64)))

    def w6(self, *, axis: Literal[0, 1] = 0, group_size: int = 16) -> ConfigT:
        """Return 6 bits per weight, one LUT per ``group_size`` channels along ``axis``."""
        return self._grouped(6, axis, group_size)

    def w8(self) -> ConfigT:
        """Return 8 bits per weight, one LUT per tensor."""
        return self._make(states_of(PalettizationSpec(n_bits=8)))

    def _grouped(
        self, n_bits: Literal[2, 3, 4, 6], axis: Literal[0, 1], group_size: int
    ) -> ConfigT:
        granularity = PerGroupedChannelGranularity(axis=axis, group_size=group_size)
        return self._make(states_of(PalettizationSpec(n_bits=n_bits, granularity=granularity)))
