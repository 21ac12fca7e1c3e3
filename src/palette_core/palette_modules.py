"""The module that stands for a palettized weight in a prepared model."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from palette_core.interfaces import TrainingStrategy
from palette_core.packed_weight import PaletteModule
from palette_core.palettized import PalettizedTensor
from palette_core.planning import TensorPlan
from palette_core.sensitivities import Sensitivity


@final
class PalettizedWeight(PaletteModule):
    """A weight of a prepared model: unpacked indices, look-up tables, and the plan.

    In evaluation mode the decoded weight is kept between calls, until a buffer changes.
    """

    enabled: Tensor

    def __init__(
        self, plan: TensorPlan, palettized: PalettizedTensor, strategy: TrainingStrategy
    ) -> None:
        super().__init__(palettized, palettized.indices)
        self.plan = plan
        self.strategy = strategy
        self.sensitivity: Sensitivity | None = None  # of the dense weight, for every clustering
        self.register_buffer("enabled", torch.tensor(True, device=palettized.indices.device))
        self._on = True
        self._decoded: Tensor | None = None
        self._decoded_from: tuple[Any, ...] = ()
        self._decoded_version = 0

    def palettized(self) -> PalettizedTensor:
        """Return the weight as indices and tables that share this module's memory."""
        lut, lut_scale, zero = self.entries()
        return PalettizedTensor(
            self.indices,
            lut,
            self.n_bits,
            self.axis,
            self.weight_dtype,
            lut_scale,
            zero,
            self.scale,
        )

    def set_palettized(self, palettized: PalettizedTensor) -> None:
        """Take over a new palette of the same shapes and dtypes."""
        fresh = PalettizedWeight(self.plan, palettized, self.strategy)
        for name, buffer in fresh.named_buffers():
            if name != "enabled":
                setattr(self, name, buffer)

    def enable(self, on: bool) -> None:
        """Decode (True), or let the dense weight through (False)."""
        self._on = on
        self.enabled.fill_(on)

    @property
    def is_enabled(self) -> bool:
        """Whether the palette stands for the weight."""
        return self._on

    def forward(self, weight: Tensor) -> Tensor:
        """Return the decoded weight, or what the training strategy makes of it."""
        if not self._on:
            return weight
        if self.training:
            return self.strategy.forward(weight, self.palettized(), self.decoded())
        return self.decoded()

    def decoded(self) -> Tensor:
        """Return the dense weight, from the previous call where nothing has changed."""
        if (
            type(self.indices) is not Tensor
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        ):
            # A graph is being recorded: the decoding itself must be in it, not its result.
            return self.palettized().decode()
        key = tuple(
            (part, 0 if part.is_inference() else part._version)
            for part in (self.indices, self.lut, self.lut_scale, self.lut_zero_point, self.scale)
            if part is not None
        )
        kept = self._decoded
        # Its own version too: a caller that has written to the weight has changed this copy only.
        written = kept is not None and kept._version != self._decoded_version
        if kept is None or written or not _same(key, self._decoded_from):
            with torch.inference_mode(mode=False), torch.no_grad():
                kept = self._decoded = self.palettized().decode()
            self._decoded_from, self._decoded_version = key, kept._version
        return kept

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._forget()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._forget()
        if not self.enabled.is_meta:
            self._on = bool(self.enabled)

    def _forget(self) -> None:
        self._decoded, self._decoded_from = None, ()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_decoded": None, "_decoded_from": ()}

    def extra_repr(self) -> str:
        """Return what ``repr`` shows in brackets."""
        spec = self.plan.spec
        return (
            f"n_bits={spec.n_bits}, grid={self.palettized().grid}, algorithm={self.plan.algorithm}"
        )


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return len(a) == len(b) and all(x is y and v == w for (x, v), (y, w) in zip(a, b, strict=True))
