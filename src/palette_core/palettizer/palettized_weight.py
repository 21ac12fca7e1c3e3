"""The module that stands for a palettized weight in a prepared model."""

from __future__ import annotations

from typing import Any, cast, final

import torch
from torch import Tensor, nn

from palette_core.planning import TensorPlan
from palette_core.plugins import LutQuantizer, TrainingStrategy
from palette_core.plugins.checked.stored_forms import CheckedForm
from palette_core.plugins.checked.training import StrategyCalls
from palette_core.plugins.training_problem import TrainingProblem
from palette_core.storage.forms.registry import encode, size_in_bits, stored_form
from palette_core.storage.packed_weight import PaletteModule
from palette_core.tensors.palettized import PalettizedTensor, dequantize_lut
from palette_core.tensors.sensitivities import Sensitivity
from palette_core.tensors.zeros import zero_mask

_STATES = ("enabled", "learned", "steps")
_AT_FIRST: dict[str, Any] = {
    "sensitivity": None,
    "_on": True,
    "_has_learned": False,
    "_steps": 0,
    "_trained_name": "lut",
    "_decoded": None,
    "_decoded_from": (),
    "_decoded_version": 0,
    "_settled_from": (),
}


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
        strategy: what the weight is in training mode.
        trains_lut: an optimizer trains the tables.
        moves_lut: the strategy moves the tables after each step.
        quantizer: of the tables, where they are quantized.
        form: how the weight is stored once it is finalized; None is the default.
    """

    enabled: Tensor
    learned: Tensor
    steps: Tensor

    sensitivity: Sensitivity | None  # of the dense weight, for every clustering
    # What the three buffers hold, for no forward pass to wait for a device.
    _on: bool
    _has_learned: bool
    _steps: int
    _trained_name: str
    _decoded: Tensor | None
    _decoded_from: tuple[Any, ...]
    _decoded_version: int
    _settled_from: tuple[Any, ...]

    def __init__(
        self,
        plan: TensorPlan,
        palettized: PalettizedTensor,
        strategy: TrainingStrategy,
        *,
        trains_lut: bool = False,
        moves_lut: bool = False,
        quantizer: LutQuantizer | None = None,
        form: CheckedForm | None = None,
    ) -> None:
        palettized = _outside_inference(palettized)
        form = stored_form() if form is None else form
        super().__init__(palettized, form, {"indices": palettized.indices})
        vars(self).update(_AT_FIRST)  # nn.Module's setattr takes its time
        self.plan = plan
        self.strategy = strategy
        self.trains_lut = trains_lut
        self.moves_lut = moves_lut
        self.quantizer = quantizer
        device = palettized.indices.device
        with torch.inference_mode(mode=False):
            self.register_buffer("enabled", torch.tensor(True, device=device))
            self.register_buffer("learned", torch.tensor(False, device=device))
            self.register_buffer("steps", torch.tensor(0, device=device))
            if (trains_lut or moves_lut) and palettized.lut_scale is not None:
                self._trained_name = "float_lut"
                entries = dequantize_lut(
                    palettized.lut, palettized.lut_scale, palettized.lut_zero_point
                )
                self.register_buffer("float_lut", entries.to(palettized.dtype))
            if trains_lut:
                table = self._buffers.pop(self._trained_name)
                self.register_parameter(self._trained_name, nn.Parameter(cast("Tensor", table)))

    def palettized(self) -> PalettizedTensor:
        """Return the weight as indices and tables that share this module's memory.

        After training, these are what `settle` last made of them.
        """
        return self.stored()._replace(lut=self.lut.detach()).with_indices(self.indices)

    def palettized_shape(self) -> torch.Size:
        """Shape of the decoded weight."""
        return torch.Size(self.stored().shape)

    def size_in_bits(self) -> int:
        """Bits of the weight once it is finalized."""
        return size_in_bits(encode(self.palettized(), self.form), self.form)

    def set_palettized(self, palettized: PalettizedTensor) -> None:
        """Take over a new palette of the same shapes and dtypes; nothing is learned of it yet."""
        fresh = PalettizedWeight(
            self.plan,
            palettized,
            self.strategy,
            trains_lut=self.trains_lut,
            moves_lut=self.moves_lut,
            quantizer=self.quantizer,
            form=self.form,
        )
        for name, parameter in fresh.named_parameters():
            with torch.no_grad():
                getattr(self, name).copy_(parameter)  # in place: optimizers hold it
        for name, buffer in fresh.named_buffers():
            if name not in _STATES:
                setattr(self, name, buffer)
        self._set_learned(False)

    def enable(self, on: bool) -> None:
        """Decode (True), or let the dense weight through (False)."""
        self._on = on
        self.enabled.fill_(on)

    @property
    def is_enabled(self) -> bool:
        """Return whether the palette stands for the weight."""
        return self._on

    # --- training -------------------------------------------------------------------------------

    @property
    def start(self) -> int:
        """The training step from which on the palette stands for the weight."""
        schedule = self.plan.pat_schedule
        return 0 if schedule is None else schedule.enable_fake_palettize

    @property
    def trained_table(self) -> Tensor:
        """The tables that training changes, ``[*grid, K, D]``: a parameter where it trains them."""
        return cast("Tensor", getattr(self, self._trained_name))

    @property
    def steps_done(self) -> int:
        """Training steps of the model, as counted last."""
        return self._steps

    def count_step(self, steps: int) -> None:
        """Note that ``steps`` training steps of the model are done, in all."""
        self._steps = steps
        self.steps.fill_(steps)

    @property
    def moves_now(self) -> bool:
        """Return whether a training step calls for `advance`."""
        return self._on and self.moves_lut

    def advance(self, weight: Tensor) -> None:
        """Let the strategy move its tables, after a training step that is not yet counted.

        Args:
            weight: the dense weight, `parametrization.chain_input` of this module.

        Raises:
            WeightError: the weight or a table has become NaN or infinite.
            TrainingError: the strategy failed, or returned what are no tables.
        """
        with torch.no_grad():
            lut = self._calls.advance(self._problem(weight.detach()))
            if lut is not None:
                self.trained_table.copy_(lut.reshape(self.trained_table.shape))
                self._set_learned(True)

    def settle(self, weight: Tensor) -> None:
        """Make indices and tables what training has come to; evaluation and `finalize` use them.

        Args:
            weight: the dense weight, `parametrization.chain_input` of this module.

        Raises:
            WeightError: the weight or a table has become NaN or infinite.
            TrainingError: the strategy failed, or returned what is no assignment.
        """
        if not (self._on and self._has_learned) or weight.is_meta:
            return
        with torch.inference_mode(mode=False), torch.no_grad():
            problem = self._problem(weight.detach())
            if self._trained_name != "lut":
                self._store(problem)
            codes = self._calls.harden(problem)
            if codes is not None:
                indices = problem.palettized.layout.merge_codes(codes)
                if not torch.equal(indices, self.indices):
                    self.indices.copy_(indices)
        if isinstance(weight, nn.Parameter):  # others are computed anew each time
            self._settled_from = _versions(weight, self.trained_table)

    def _store(self, problem: TrainingProblem) -> None:
        """Put the trained tables into the buffers, quantized."""
        self._calls.check_problem(problem)
        made = problem.store(problem.lut).quantized
        assert made is not None
        zero = made.zero_point
        for mine, part in (
            (self.lut, made.values.view(torch.uint8)),
            (self.lut_scale, made.scale),
            (self.lut_zero_point, None if zero is None else zero.view(torch.uint8)),
        ):
            if mine is not None and part is not None:
                mine.copy_(part.reshape(mine.shape))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the decoded weight, or what the training strategy makes of it."""
        if not self._on:
            return weight
        if self.training:
            if torch.is_grad_enabled() and not self._has_learned:
                self._set_learned(True)
            checked = not (self._is_recorded() or weight.is_meta)
            return self._calls.forward(self._problem(weight), checked=checked)
        if self._has_learned and not self._is_recorded():
            now = _versions(weight, self.trained_table)
            if not _same(now, self._settled_from):
                self.settle(weight)
        return self.decoded()

    @property
    def _calls(self) -> StrategyCalls:
        return StrategyCalls(self.strategy, self.plan.name, self.plan.spec.training_strategy)

    def _problem(self, weight: Tensor) -> TrainingProblem:
        palettized = self.palettized()
        lut = self.trained_table
        if lut.dtype != palettized.dtype:  # quantized, and no strategy changes it
            lut = palettized.codebook().lut
        lut = lut.reshape(-1, *lut.shape[-2:])
        zeros = None
        if self.plan.spec.preserve_zero:
            zeros = (lut.detach() == 0).all(-1)
            # Their gradients end here.
            lut = lut.masked_fill(zeros[..., None], 0.0)
            weight = weight.masked_fill(zero_mask(weight, palettized.layout), 0.0)
        return TrainingProblem(
            weight,
            palettized,
            lut,
            max(0, self._steps - self.start),
            self.decoded,
            None if self.quantizer is None else self.quantizer.quantize,
            zeros,
        )

    # --- what is kept between calls -------------------------------------------------------------

    def decoded(self) -> Tensor:
        """Return the dense weight, from the previous call where nothing has changed."""
        if self._is_recorded():
            # A graph is being recorded: the decoding itself must be in it, not its result.
            return self.palettized().decode()
        key = _versions(self.indices, self.lut, self.lut_scale, self.lut_zero_point, self.scale)
        kept = self._decoded
        # Its own version too: a caller that has written to the weight has changed this copy only.
        written = kept is not None and kept._version != self._decoded_version
        if kept is None or written or not _same(key, self._decoded_from):
            with torch.inference_mode(mode=False), torch.no_grad():
                kept = self._decoded = self.palettized().decode()
            self._decoded_from, self._decoded_version = key, kept._version
        return kept

    def _is_recorded(self) -> bool:
        return (
            type(self.indices) is not Tensor
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        )

    def train(self, mode: bool = True) -> PalettizedWeight:
        """Set the mode; evaluation then looks at the weight anew."""
        self._settled_from = ()
        return super().train(mode)

    def _set_learned(self, learned: bool) -> None:
        self._has_learned = learned
        self.learned.fill_(learned)
        self._settled_from = ()

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
        self._decoded, self._decoded_from, self._settled_from = None, (), ()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_decoded": None, "_decoded_from": (), "_settled_from": ()}

    def extra_repr(self) -> str:
        """Return what ``repr`` shows in brackets."""
        spec = self.plan.spec
        return (
            f"n_bits={spec.n_bits}, grid={self.palettized().grid}, algorithm={self.plan.algorithm}"
        )


def _outside_inference(palettized: PalettizedTensor) -> PalettizedTensor:
    """Return parts that can be written to later: what inference mode has made cannot."""
    parts = vars(palettized).values()
    if not any(isinstance(part, Tensor) and part.is_inference() for part in parts):
        return palettized

    def outside(part: Any) -> Any:
        return part.clone() if isinstance(part, Tensor) and part.is_inference() else part

    with torch.inference_mode(mode=False):
        return PalettizedTensor(**{name: outside(part) for name, part in vars(palettized).items()})


def _versions(*parts: Tensor | None) -> tuple[Any, ...]:
    return tuple(
        (part, 0 if part.is_inference() else part._version) for part in parts if part is not None
    )


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return len(a) == len(b) and all(x is y and v == w for (x, v), (y, w) in zip(a, b, strict=True))
