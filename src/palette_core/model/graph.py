"""A model as planning sees it: its modules, its tensors, and who uses them. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from palette_core.errors import PlanError


@dataclass(frozen=True)
class Use:
    """One operation that consumes a tensor.

    Attributes:
        module: fully qualified name of the module in whose ``forward`` the operation runs.
        op_type: functional name, such as ``"linear"``.
        op_name: ``"<module>.<op_type>"``, numbered from the second in that module:
            ``"<module>.linear_1"``; without the dot in the root module.
        axis: the tensor's output-channel axis in this call; None where the operation is not
            known, or the call was not looked at.
    """

    module: str
    op_type: str
    op_name: str
    axis: int | None = None


@dataclass(frozen=True)
class Owner:
    """A place where a tensor hangs in the model: module and local name."""

    module: str
    state: str

    @property
    def name(self) -> str:
        """Fully qualified name of the tensor at this place."""
        return f"{self.module}.{self.state}" if self.module else self.state


@dataclass(frozen=True)
class TensorRecord:
    """A parameter, buffer or constant of the model, and who uses it.

    Attributes:
        owners: every place it hangs, in the order of the model; more than one where tied.
        shape: its shape.
        dtype: its dtype.
        kind: ``"parameter"``, ``"buffer"``, ``"ingredient"`` or ``"constant"``, as of a `State`.
        uses: operations that received it; empty where the run never reached it.
        reached: whether an owning module ran.
        obstacle: why the tensor cannot be replaced where it hangs, or None.
        view_axis: its output-channel axis by the first operation that received a view of it, such
            as its transpose or one of its experts; None where none did.
        view_op: that operation.
        unused: why no operation is known to take it, where that is known.
    """

    owners: tuple[Owner, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str
    uses: tuple[Use, ...] = ()
    reached: bool = True
    obstacle: str | None = None
    view_axis: int | None = None
    view_op: str | None = None
    unused: str | None = None

    @property
    def name(self) -> str:
        """Fully qualified name at the first owner."""
        return self.owners[0].name


@dataclass(frozen=True)
class ModuleRecord:
    """A module: all its fully qualified names, and the canonical name of its type."""

    names: tuple[str, ...]
    type_name: str


@dataclass(frozen=True)
class ModelGraph:
    """Graph of a model, as planning needs it; can be made by hand, without one.

    Attributes:
        modules: its modules.
        tensors: its tensors.
        written: names of buffers that the run has written to, such as caches.

    Raises:
        PlanError: a tensor hangs in a module that is not among ``modules``.
    """

    modules: tuple[ModuleRecord, ...]
    tensors: tuple[TensorRecord, ...]
    written: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {name for module in self.modules for name in module.names}
        for tensor in self.tensors:
            for owner in tensor.owners:
                if owner.module not in known:
                    raise PlanError(
                        f"tensor {owner.name!r} hangs in module {owner.module!r}, which is not "
                        "among the modules of the graph; add a ModuleRecord for it"
                    )
