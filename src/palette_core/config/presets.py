"""Ready-made configs: ``KMeansPalettizerConfig.presets.w4()`` and its kin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, Literal, TypeVar

from palette_core.config.op import EVERY_STATE, OpKMeansPalettizerConfig, states_of
from palette_core.config.spec import PalettizationSpec, PerGroupedChannelGranularity
from palette_core.operations import EVERY_MATRIX, installed_operations

ConfigT = TypeVar("ConfigT")
Make = Callable[
    [Mapping[str, PalettizationSpec | None], Mapping[str, OpKMeansPalettizerConfig]], ConfigT
]

_LOOKUPS = ("embedding", "embedding_bag")


class Presets(Generic[ConfigT]):
    """Ready-made configs of one class, for ``weight`` and ``in_proj_weight`` if nothing is said."""

    def __init__(self, make: Make[ConfigT]) -> None:
        self._with_operations = make

    def _make(self, states: Mapping[str, PalettizationSpec | None]) -> ConfigT:
        return self._with_operations(states, {})

    def w2(self, *, axis: Literal[0, 1] = 0, group_size: int = 16) -> ConfigT:
        """Return 2 bits per weight, one LUT per ``group_size`` channels along ``axis``."""
        return self._grouped(2, axis, group_size)

    def w3(self, *, axis: Literal[0, 1] = 0, group_size: int = 16) -> ConfigT:
        """Return 3 bits per weight, one LUT per ``group_size`` channels along ``axis``."""
        return self._grouped(3, axis, group_size)

    def w4(self, *, axis: Literal[0, 1] = 0, group_size: int = 16) -> ConfigT:
        """Return 4 bits per weight, one LUT per ``group_size`` channels along ``axis``."""
        return self._grouped(4, axis, group_size)

    def w4_all(self, *, group_size: int = 16) -> ConfigT:
        """Return 4 bits per weight for all matrices: embeddings, experts, recurrent layers too.

        Weights of which operations receive views, such as one expert at a time, are not reached.
        One LUT per ``group_size`` output channels of each operation; in tables of rows, along
        their width, as numbers of rows have no handy divisors.
        """
        spec, rows = (
            PalettizationSpec(
                n_bits=4, granularity=PerGroupedChannelGranularity(axis=axis, group_size=group_size)
            )
            for axis in (None, 1)
        )
        return self._with_operations(states_of(spec), every_matrix(spec, rows))

    def w2_block64(self) -> ConfigT:
        """Return 2 bits per weight, one LUT per tensor and a fitted scale for every 64 inputs.

        Of 2.25 bits with the scales; see `w4_block64`.
        """
        return self._make(states_of(PalettizationSpec(n_bits=2, scale_block_size=64)))

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


def every_matrix(
    spec: PalettizationSpec, rows: PalettizationSpec
) -> dict[str, OpKMeansPalettizerConfig]:
    """Return an ``op_type_config`` of ``spec`` for all matrices, ``rows`` for tables of rows."""
    known = [name for name in _LOOKUPS if name in installed_operations()]
    each = {EVERY_MATRIX: spec, **dict.fromkeys(known, rows)}
    return {
        name: OpKMeansPalettizerConfig(op_state_spec={EVERY_STATE: one})
        for name, one in each.items()
    }
