"""The kind *operation*: its names, its weight's axes, and how inputs meet the weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from palette_core.plugins import types
from palette_core.plugins.entries import PluginEntry
from palette_core.plugins.markers import hookspec


@dataclass(frozen=True)
class OperationCall:
    """One call of an operation.

    Attributes:
        func: what was called; may be called again, with other arguments.
        arguments: what it was given, by name; arguments that were left out are missing.
    """

    func: Callable[..., Any]
    arguments: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        """Return the argument ``name``.

        Raises:
            KeyError: it was not given.
        """
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return the argument ``name``, or ``default`` where it was not given."""
        return self.arguments.get(name, default)


@dataclass(frozen=True)
class Consumption:
    """Vectors that one weight is multiplied with in one call.

    Attributes:
        weight: the tensor itself, as the operation received it.
        raw: the inputs, as the operation received them.
        view: how these are seen as vectors that rows of the weight are multiplied with.
    """

    weight: types.Tensor
    raw: tuple[types.Tensor, ...]
    view: types.InputView


class Operation(ABC):
    """Looks at calls of one operation. Keep no state in it: one object looks at all of them."""

    def channel_axis(self, call: OperationCall, weight: types.Tensor) -> int | None:
        """Return the axis of a weight's output channels, where it depends on the call.

        Args:
            call: the call.
            weight: one of its arguments, or an item of one.

        Returns:
            The axis, negative ones counted from the end; None where the entry says it.
        """
        del call, weight
        return None

    @abstractmethod
    def consumptions(self, call: OperationCall) -> Iterable[Consumption]:
        """Return what each weight of the call is multiplied with.

        What data-aware methods work with; weights that are not named here are clustered without
        data. Every argument may be the weight: yield for each that you know the inputs of.

        Args:
            call: the call; nothing in it may be written to.
        """


class _Plain(Operation):
    def consumptions(self, call: OperationCall) -> Iterable[Consumption]:
        del call
        return ()


def plain(options: Any) -> Operation:
    """Make an `Operation` of which nothing is known but what its entry says."""
    del options
    return _Plain()


@dataclass(frozen=True, kw_only=True)
class OperationEntry(PluginEntry):
    """An operation that consumes weights.

    Attributes:
        name: what configs call it; of ``torch.ops.ns.op`` it is ``"ns.op"``.
        factory: makes the `Operation` that looks at its calls; import heavy modules inside it.
        is_default: its weights are palettized without being asked for.
        takes_matrices: its weights are matrices, tables of rows or kernels, of which a config may
            ask for all at once; not so where they are factors or summands by element.
        channel_axis: the output-channel axis of its weight, negative ones counted from the end.
        argument_axes: the same, by name of an argument, where it differs.
        parameters: names of its positional arguments, in order; ``"*name"`` takes all that are
            left. Empty takes them from the schema or the signature of what was called.
        aliases: other names of the same, in configs and in calls: ``"__matmul__"``, ``"ns.op_"``.
            What the core's operations are called, nobody else's may be.
        internal_forms: names of what it becomes inside, which a config may not use; the error
            points to this operation.
        module_types: fully qualified names of the modules that it is the operation of.
        part_types: types of modules inside those that hold a weight for it and do not run.
    """

    takes_options: ClassVar[bool] = False

    factory: Callable[[Any], Operation] = plain
    is_default: bool = False
    takes_matrices: bool = False
    channel_axis: int = 0
    argument_axes: Mapping[str, int] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    internal_forms: tuple[str, ...] = ()
    module_types: tuple[str, ...] = ()
    part_types: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """Return name and aliases, as configs and calls are looked up: with dots."""
        aliases = (alias.removeprefix("torch.ops.").replace("::", ".") for alias in self.aliases)
        return self.name, *aliases

    def claims(self) -> frozenset[str]:
        """Return all names, those of forms in place too, and the module types it is made for."""
        names = {spelled for name in self.names() for spelled in (name, f"{name}_")}
        modules = {f"the module type {path!r}" for path in (*self.module_types, *self.part_types)}
        return frozenset({f"the name {name!r}" for name in names}) | modules

    def check(self) -> None:
        """Refuse names that are no tuples of text, and axes that are no integers."""
        super().check()
        for name in ("parameters", "aliases", "internal_forms", "module_types", "part_types"):
            value: object = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
                raise TypeError(f"{name} of {self.name!r} must be a tuple of names, got {value!r}")
        axes: dict[str, object] = {"channel_axis": self.channel_axis, **dict(self.argument_axes)}
        for name, axis in axes.items():
            if type(axis) is not int:
                raise TypeError(f"axis {name!r} of {self.name!r} must be an integer, got {axis!r}")


@hookspec
def palette_core_operations() -> Iterable[OperationEntry]:
    """Return the operations that this distribution knows.

    Example::

        from palette_core.plugins import (
            INTERFACE_VERSION,
            Consumption,
            Operation,
            OperationEntry,
            hookimpl,
        )


        class Projection(Operation):
            '''``torch.ops.my_library.project(x, weight)``, which is ``x @ weight``.'''

            def consumptions(self, call):
                from palette_core.tensors import Features

                yield Consumption(call["weight"], (call["x"],), Features(rows=(1,)))


        @hookimpl
        def palette_core_operations():
            return [
                OperationEntry(
                    name="my_library.project",
                    summary="x @ W",
                    interface=INTERFACE_VERSION,
                    factory=lambda options: Projection(),
                    channel_axis=1,
                )
            ]
    """
    raise AssertionError("hook specifications are never called")
