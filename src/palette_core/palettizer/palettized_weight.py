"""The module that stands for a palettized weight in a prepared model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from palette_core._common.pytrees import exchanged
from palette_core.palettizer.decoding import (
    KeptWeight,
    Versions,
    is_recorded,
    same,
    versions,
    warn_of_dense_program,
)
from palette_core.palettizer.nonzero_training import nonzeros_alone, whole, whole_indices
from palette_core.palettizer.trainer import Trainer
from palette_core.planning import TensorPlan
from palette_core.plugins.training_problem import TrainingProblem
from palette_core.storage.forms.lookup import encode, form_for, size_in_bits, stored_form
from palette_core.storage.packed_weight import PaletteModule
from palette_core.tensors.codebook import QuantizedLut, dequantize_lut
from palette_core.tensors.nonzeros import Nonzeros
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.sensitivities import Sensitivity

_STATES = ("enabled", "learned", "steps")


@final
class PalettizedWeight(PaletteModule):
    """A weight of a prepared model: unpacked indices, look-up tables, and the plan.

    In evaluation mode the decoded weight is kept between calls, until a buffer changes. Once the
    weight or its tables have been trained, evaluation first brings indices and tables up to date.

    Tables that training changes are ``lut``, or ``float_lut`` beside a quantized ``lut``: a
    parameter where an optimizer trains them, else a buffer.

    Args:
        plan: the decisions.
        palettized: the result of clustering.
        trainer: how it trains.
    """

    mask: Tensor | None
    enabled: Tensor
    learned: Tensor
    steps: Tensor

    plan: TensorPlan
    trainer: Trainer
    sensitivity: Sensitivity | None  # of the dense weight, for every clustering
    # What the three buffers hold, for no forward pass to wait for a device.
    _on: bool
    _has_learned: bool
    _steps: int
    _trained_name: str
    _kept: KeptWeight
    _settled_from: Versions
    _nonzeros: Nonzeros | None  # what the mask says, once training has asked

    def __init__(
        self,
        plan: TensorPlan,
        palettized: PalettizedTensor,
        trainer: Trainer,
    ) -> None:
        palettized = _outside_inference(palettized)
        form = stored_form(form_for(palettized, plan.spec.stored_form))
        super().__init__(palettized, form, {"indices": palettized.indices})
        vars(self).update(  # nn.Module's setattr takes its time
            plan=plan,
            trainer=trainer,
            sensitivity=None,
            _on=True,
            _has_learned=False,
            _steps=0,
            _trained_name="lut",
            _kept=KeptWeight(),
            _settled_from=(),
            _nonzeros=None,
        )
        self.register_buffer("mask", palettized.mask)
        device = palettized.indices.device
        with torch.inference_mode(mode=False):
            self.register_buffer("enabled", torch.tensor(True, device=device))
            self.register_buffer("learned", torch.tensor(False, device=device))
            self.register_buffer("steps", torch.tensor(0, device=device))
            if (trainer.trains_lut or trainer.moves_lut) and palettized.lut_scale is not None:
                self._trained_name = "float_lut"
                entries = dequantize_lut(
                    palettized.lut, palettized.lut_scale, palettized.lut_zero_point
                )
                self.register_buffer("float_lut", entries.to(palettized.dtype))
            if trainer.trains_lut:
                table = self._buffers.pop(self._trained_name)
                self.register_parameter(self._trained_name, nn.Parameter(cast("Tensor", table)))

    def palettized(self) -> PalettizedTensor:
        """Return the weight as indices and tables that share this module's memory.

        After training, these are what `settle` last made of them.
        """
        found = self.stored()._replace(lut=self.lut.detach()).with_indices(self.indices)
        return found if self.mask is None else replace(found, mask=self.mask)

    def palettized_shape(self) -> torch.Size:
        """Shape of the decoded weight."""
        return torch.Size(self.stored().shape)

    def size_in_bits(self) -> int:
        """Bits of the weight once it is finalized."""
        return size_in_bits(encode(self.palettized(), self.form), self.form)

    def changeable(self) -> list[Tensor]:
        """Return the tensors that `finalize` changes where training goes on, or that it shares."""
        parts = [*self.parameters(), *self.buffers()]
        if self._on and not self._has_learned:
            return [part for part in parts if part is not self.indices and part is not self.mask]
        return parts

    def set_palettized(self, palettized: PalettizedTensor) -> None:
        """Take over a new palette of the same shapes and dtypes; nothing is learned of it yet."""
        fresh = PalettizedWeight(self.plan, palettized, self.trainer)
        self.form, self.mask = fresh.form, fresh.mask
        for name, parameter in fresh.named_parameters():
            with torch.no_grad():
                getattr(self, name).copy_(parameter)  # in place: optimizers hold it
        for name, buffer in fresh.named_buffers():
            if name not in _STATES:
                setattr(self, name, buffer)
        self._nonzeros = None
        self._set_learned(False)

    def enable(self, on: bool) -> None:
        """Decode (True), or let the dense weight through (False)."""
        self._on = on
        self.enabled.fill_(on)

    @property
    def is_enabled(self) -> bool:
        """Return whether the palette stands for the weight."""
        return self._on

    def forward(self, weight: Tensor) -> Tensor:
        """Return the decoded weight, or what the training strategy makes of it."""
        if not self._on:
            return weight if self.mask is None else torch.where(self.mask, weight, 0.0)
        recorded = is_recorded(self.indices)
        if recorded:
            warn_of_dense_program()
        if self.training:
            if torch.is_grad_enabled() and not self._has_learned:
                self._set_learned(True)
            checked = not (recorded or weight.is_meta)
            made = self.trainer.strategy.forward(self._problem(weight), checked=checked)
            return made if self.mask is None else whole(made, self.palettized(), self._where())
        if self._has_learned and not recorded:
            now = versions(weight, self.trained_table)
            if not same(now, self._settled_from):
                self.settle(weight)
        return self.decoded()

    def decoded(self) -> Tensor:
        """Return the dense weight, from the previous call where nothing has changed."""
        if is_recorded(self.indices):
            return self.palettized().decode()
        return self._kept.of(self)

    # --- training -------------------------------------------------------------------------------

    @property
    def trained_table(self) -> Tensor:
        """The tables that training changes, ``[*grid, K, D]``: a parameter where it trains them."""
        return cast("Tensor", getattr(self, self._trained_name))

    @property
    def has_learned(self) -> bool:
        """Return whether training has changed anything since the weight was clustered."""
        return self._has_learned

    @property
    def steps_done(self) -> int:
        """Training steps of the model, as counted last."""
        return self._steps

    def count_step(self, steps: int) -> None:
        """Note that ``steps`` training steps of the model are done, in all."""
        self._steps = steps
        self.steps.fill_(steps)

    def advance(self, weight: Tensor) -> None:
        """Let the strategy move its tables, after a training step that is not yet counted.

        Args:
            weight: the dense weight, `PaletteSite.dense`.

        Raises:
            WeightError: the weight or a table has become NaN or infinite.
            TrainingError: the strategy failed, or returned what are no tables.
        """
        with torch.no_grad():
            lut = self.trainer.strategy.advance(self._problem(weight.detach()))
            if lut is not None:
                self.trained_table.copy_(lut.reshape(self.trained_table.shape))
                self._set_learned(True)

    def settle(self, weight: Tensor) -> None:
        """Make indices and tables what training has come to; evaluation and `finalize` use them.

        Args:
            weight: the dense weight, `PaletteSite.dense`.

        Raises:
            WeightError: the weight or a table has become NaN or infinite.
            TrainingError: the strategy failed, or returned what is no assignment.
        """
        if not (self._on and self._has_learned) or weight.is_meta:
            return
        with torch.inference_mode(mode=False), torch.no_grad():
            problem = self._problem(weight.detach())
            if self._trained_name != "lut":
                self._store(self.trainer.quantized(problem))
            indices = self.trainer.hardened(problem)
            if indices is not None and self.mask is not None:
                indices = whole_indices(indices, self.palettized(), self._where())
            if indices is not None and not torch.equal(indices, self.indices):
                self.indices.copy_(indices)
        if isinstance(weight, nn.Parameter):  # others are computed anew each time
            self._settled_from = versions(weight, self.trained_table)

    def _problem(self, weight: Tensor) -> TrainingProblem:
        palettized, tables = self.palettized(), self.trained_table
        if palettized.mask is None:
            return self.trainer.problem(weight, palettized, tables, self._steps, self.decoded)
        weight, palettized = nonzeros_alone(weight, palettized, self._where())
        return self.trainer.problem(weight, palettized, tables, self._steps, palettized.decode)

    def _where(self) -> Nonzeros:
        if self._nonzeros is None:
            assert self.mask is not None
            self._nonzeros = Nonzeros.of(self.mask, self.palettized().layout)
        return self._nonzeros

    def _store(self, made: QuantizedLut) -> None:
        """Put quantized tables into the buffers."""
        zero = made.zero_point
        for mine, part in (
            (self.lut, made.values.view(torch.uint8)),
            (self.lut_scale, made.scale),
            (self.lut_zero_point, None if zero is None else zero.view(torch.uint8)),
        ):
            if mine is not None and part is not None:
                mine.copy_(part.reshape(mine.shape))

    def _set_learned(self, learned: bool) -> None:
        self._has_learned = learned
        self.learned.fill_(learned)
        self._settled_from = ()

    # --- what modules do ------------------------------------------------------------------------

    def train(self, mode: bool = True) -> PalettizedWeight:
        """Set the mode; evaluation then looks at the weight anew."""
        self._settled_from = ()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._forget()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._forget()
        if not self.enabled.is_meta:
            self._on, self._has_learned = bool(self.enabled), bool(self.learned)
            self._steps = int(self.steps)

    def _forget(self) -> None:
        self._kept, self._settled_from, self._nonzeros = KeptWeight(), (), None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_settled_from": (), "_nonzeros": None}

    def extra_repr(self) -> str:
        """Return what ``repr`` shows in brackets."""
        spec = self.plan.spec
        return (
            f"n_bits={spec.n_bits}, grid={self.palettized().grid}, algorithm={self.plan.algorithm}"
        )


def _outside_inference(palettized: PalettizedTensor) -> PalettizedTensor:
    """Return parts that can be written to later: what inference mode has made cannot."""
    parts = [part for part in vars(palettized).values() if isinstance(part, Tensor)]
    if not any(part.is_inference() for part in parts):
        return palettized
    with torch.inference_mode(mode=False):
        made: PalettizedTensor = exchanged(
            lambda part: part.clone() if part.is_inference() else part, palettized
        )
    return made
