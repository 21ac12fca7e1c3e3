"""Training of one weight: what its strategy is given, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from palette_core.plugins import LutQuantizer
from palette_core.plugins.checked.training import CheckedStrategy
from palette_core.plugins.training_problem import TrainingProblem
from palette_core.tensors.codebook import QuantizedLut
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.zeros import zero_mask


@dataclass(frozen=True)
class Trainer:
    """Rules by which one weight trains. Knows no model, and keeps no state.

    Attributes:
        strategy: what the weight is in training mode.
        start: the training step from which on the palette stands for the weight.
        trains_lut: an optimizer trains the tables.
        moves_lut: the strategy moves the tables after each step.
        preserves_zero: zeros of the weight stay zero; None is where every table has an entry for
            them, and of weights whose zeros have no entry (`PalettizedTensor.mask`) anyway.
        quantizer: of the tables, where they are quantized.
    """

    strategy: CheckedStrategy
    start: int = 0
    trains_lut: bool = False
    moves_lut: bool = False
    preserves_zero: bool | None = False
    quantizer: LutQuantizer | None = None

    def problem(
        self,
        weight: Tensor,
        palettized: PalettizedTensor,
        tables: Tensor,
        step: int,
        decode: Callable[[], Tensor],
    ) -> TrainingProblem:
        """Return what the strategy is given.

        Args:
            weight: the dense weight.
            palettized: its palette as last assigned.
            tables: ``[*grid, K, D]``, that training changes.
            step: training steps of the model so far.
            decode: makes ``palettized`` dense.
        """
        if tables.dtype != palettized.dtype:  # quantized, and no strategy changes it
            tables = palettized.codebook().lut
        lut = tables.reshape(-1, *tables.shape[-2:])
        zeros = self._zero_entries(lut.detach())
        if zeros is not None:
            # Their gradients end here.
            lut = lut.masked_fill(zeros[..., None], 0.0)
            weight = weight.masked_fill(zero_mask(weight, palettized.layout), 0.0)
        quantize = None if self.quantizer is None else self.quantizer.quantize
        step = max(0, step - self.start)
        return TrainingProblem(weight, palettized, lut, step, decode, quantize, zeros)

    def _zero_entries(self, lut: Tensor) -> Tensor | None:
        if self.preserves_zero is False:
            return None
        zeros = (lut == 0).all(-1)
        return zeros if self.preserves_zero or bool(zeros.any(1).all()) else None

    def hardened(self, problem: TrainingProblem) -> Tensor | None:
        """Return the indices that training has come to; None where they stay.

        Raises:
            WeightError: the weight or a table has become NaN or infinite.
            TrainingError: the strategy failed, or returned what is no assignment.
        """
        codes = self.strategy.harden(problem)
        return None if codes is None else problem.palettized.layout.merge_codes(codes)

    def quantized(self, problem: TrainingProblem) -> QuantizedLut:
        """Return the tables as they are stored, where there is a quantizer.

        Raises:
            WeightError: the weight or a table has become NaN or infinite.
        """
        self.strategy.check_problem(problem)
        made = problem.store(problem.lut).quantized
        assert made is not None
        return made
