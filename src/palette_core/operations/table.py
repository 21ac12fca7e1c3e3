"""The table of operations: everything registered, by every name that it goes by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from palette_core._common.imported import find_imported
from palette_core.errors import OperationError
from palette_core.operations.calls import ACCESSORS, bind, called_name
from palette_core.plugins.catalog import Catalog, get_catalog
from palette_core.plugins.guards import guarded
from palette_core.plugins.operations import Consumption, Operation, OperationEntry, plain
from palette_core.plugins.shelves import Registered, Shelf
from palette_core.tensors.input_views import InputView


class OperationTable:
    """Operations by name, alias, module type and call.

    Args:
        shelf: what is registered; torch's own first.
    """

    def __init__(self, shelf: Shelf[OperationEntry]) -> None:
        self._shelf = shelf
        self._entries: dict[str, OperationEntry] = {}
        for item in shelf:
            self._entries.setdefault(item.entry.name, item.entry)
        self._spellings = {name: name for name in self._entries}
        self._modules: dict[str, str] = {}
        self._made: dict[str, Operation] = {}
        for entry in self._entries.values():
            for alias in entry.aliases:
                self._spellings.setdefault(_dotted(alias), entry.name)
            for module_type in (*entry.module_types, *entry.part_types):
                self._modules.setdefault(_defined(module_type), entry.name)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        """Return the names of all operations, those palettized by default first."""
        return sorted(self._entries, key=lambda name: not self.is_default(name))

    def check(self, name: str) -> None:
        """Refuse the name of an operation that two plug-ins register.

        Raises:
            DuplicatePluginError: naming both.
        """
        self._shelf.find(name)

    def spelled(self, name: str) -> str:
        """Return the operation that goes by a name, such as ``"__matmul__"``; else the name."""
        return self._spellings.get(name, name)

    def aliases(self, name: str) -> list[str]:
        """Return the other names of an operation."""
        return [alias for alias, meant in self._spellings.items() if meant == name != alias]

    def instead_of(self, internal_form: str) -> list[str]:
        """Return the operations that become ``internal_form`` inside."""
        entries = self._entries.values()
        return [entry.name for entry in entries if internal_form in entry.internal_forms]

    def is_default(self, op_type: str) -> bool:
        """Return whether weights of this operation are palettized without being asked for."""
        return op_type in self._entries and self._entries[op_type].is_default

    def understands(self, op_type: str) -> bool:
        """Return whether somebody says how inputs of this operation meet its weight."""
        return op_type in self._entries and self._entries[op_type].factory is not plain

    def of_module(self, type_name: str) -> str | None:
        """Return the operation that modules of a type, by its canonical name, are made for."""
        return self._modules.get(type_name)

    def default_modules(self) -> tuple[type[nn.Module], ...]:
        """Return the module types, of those imported, whose weights are palettized by default."""
        paths = (path for e in self._entries.values() if e.is_default for path in e.module_types)
        return tuple(cls for cls in map(find_imported, paths) if cls is not None)

    def channel_axis(self, op_type: str | None, shape: tuple[int, ...]) -> int:
        """Return the axis of a weight's output channels, without a call to look at.

        Args:
            op_type: the operation that consumes it; 0 for one that is not known.
            shape: of the weight; biases have axis 0 only.
        """
        entry = None if op_type is None else self._entries.get(op_type)
        return 0 if entry is None else _within(entry.channel_axis, len(shape))

    def channel_axis_in(
        self,
        op_type: str,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        weight: Tensor,
    ) -> int | None:
        """Return the axis of the output channels of one argument of a call.

        Args:
            op_type: the operation.
            func: what is called.
            args: its positional arguments.
            kwargs: its keyword arguments.
            weight: one of them, or an item of one.

        Returns:
            None for an operation that is not known.

        Raises:
            OperationError: the plug-in that knows the operation fails, or returns no axis.
            DuplicatePluginError: two plug-ins know it.
        """
        if op_type not in self._entries or weight.dim() == 0:
            return None
        item = self._shelf.find(op_type)
        call = bind(item.entry, func, args, kwargs)
        who = str(item)
        operation = self._operation(item)
        axis: object = guarded(who, OperationError, lambda: operation.channel_axis(call, weight))
        if axis is None:
            names = (name for name, value in call.arguments.items() if value is weight)
            name = next(names, "")
            axis = item.entry.argument_axes.get(name, item.entry.channel_axis)
            return _within(axis, weight.dim())
        if type(axis) is int and -weight.dim() <= axis < weight.dim():
            return axis % weight.dim()
        raise OperationError(
            f"{who}: channel_axis returned {axis!r} for a weight of shape {tuple(weight.shape)}; "
            "expected None or one of its axes"
        )

    def consumptions(
        self,
        op_type: str,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> list[Consumption]:
        """Return what each weight of a call is multiplied with; nothing where that is not known.

        Args:
            op_type: the operation.
            func: what is called.
            args: its positional arguments.
            kwargs: its keyword arguments.

        Raises:
            OperationError: the plug-in that knows the operation fails, or returns nonsense.
            DuplicatePluginError: two plug-ins know it.
        """
        if op_type not in self._entries:
            return []
        item = self._shelf.find(op_type)
        call = bind(item.entry, func, args, kwargs)
        operation = self._operation(item)
        return _checked(str(item), lambda: operation.consumptions(call))

    def _operation(self, item: Registered[OperationEntry]) -> Operation:
        name = item.entry.name
        if name not in self._made:
            who = str(item)
            made: object = guarded(
                who, OperationError, lambda: item.entry.factory(item.entry.options())
            )
            if not isinstance(made, Operation):
                raise OperationError(f"{who}: its factory made {made!r}, which is no Operation")
            self._made[name] = made
        return self._made[name]


def _checked(who: str, look: Callable[[], Iterable[Consumption]]) -> list[Consumption]:
    found: Iterable[object] = guarded(who, OperationError, lambda: list(look()))
    checked = []
    for item in found:
        if not isinstance(item, Consumption):
            raise OperationError(f"{who}: consumptions yielded {item!r}, which is no Consumption")
        _check(who, item)
        checked.append(item)
    return checked


def _check(who: str, item: Consumption) -> None:
    """Refuse what would fail, or give nonsense, where sums are made of it."""
    weight: object = item.weight
    view: object = item.view
    if not isinstance(weight, Tensor) or not isinstance(view, InputView):
        raise OperationError(
            f"{who}: a Consumption has a weight and an InputView, got "
            f"{type(weight).__name__} and {view!r}"
        )
    rank, groups = weight.dim(), guarded(who, OperationError, view.groups)
    if not view.rows or any(not 0 <= axis < rank for axis in view.rows):
        raise OperationError(
            f"{who}: rows={view.rows!r} of {view!r} are no axes of a weight of shape "
            f"{tuple(weight.shape)}"
        )
    if groups < 1 or weight.shape[0] % groups:
        raise OperationError(
            f"{who}: {view!r} has {groups} groups, which do not divide axis 0 of a weight of "
            f"shape {tuple(weight.shape)}"
        )


def _within(axis: int, rank: int) -> int:
    return min(max(axis + rank if axis < 0 else axis, 0), max(rank - 1, 0))


def _dotted(name: str) -> str:
    return name.removeprefix("torch.ops.").replace("::", ".")


def _defined(path: str) -> str:
    """Return where a module type is defined, as far as it is imported."""
    found = find_imported(path)
    return path if found is None else f"{found.__module__}.{found.__qualname__}"


_latest: list[tuple[Catalog, OperationTable]] = []


def installed_operations() -> OperationTable:
    """Return the table of what is installed."""
    catalog = get_catalog()
    if not _latest or _latest[0][0] is not catalog:
        _latest[:] = [(catalog, OperationTable(catalog.operations))]
    return _latest[0][1]


def op_type_of(func: Any) -> str | None:
    """Return the name of what was called, such as ``"linear"`` or ``"ns.op"``.

    Args:
        func: as ``__torch_function__`` receives it.

    Returns:
        None when it only looks at a tensor, or hands it on as it is.
    """
    name = called_name(func)
    return None if name in ACCESSORS else installed_operations().spelled(name)
