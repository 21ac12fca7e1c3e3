"""The table of operations: everything registered, by every name that it goes by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from palette_core._common.imported import find_imported
from palette_core._common.warned import warn
from palette_core.errors import DuplicatePluginError
from palette_core.operations.calls import ACCESSORS, bind, called_name
from palette_core.plugins.catalog import Catalog, get_catalog
from palette_core.plugins.checked.operations import make_operation, usable_operations
from palette_core.plugins.operations import Consumption, Operation, OperationEntry, plain
from palette_core.plugins.registries import Registered, Registry


class OperationTable:
    """Operations by name, alias, module type and call.

    Args:
        registry: what is registered; torch's own first.
    """

    def __init__(self, registry: Registry[OperationEntry]) -> None:
        self._registry = registry
        self._entries: dict[str, OperationEntry] = {}
        self._named: dict[str, list[Registered[OperationEntry]]] = {}
        self._modules: dict[str, set[str]] = {}
        self._made: dict[str, Operation] = {}
        self._called: dict[str, str] = {}
        for item in registry:
            entry = item.entry
            for name in dict.fromkeys(entry.names()):
                self._named.setdefault(name, []).append(item)
            for module_type in (*entry.module_types, *entry.part_types):
                self._modules.setdefault(_defined(module_type), set()).add(entry.name)
        for item in registry:
            if self.named(item.entry.name) == item.entry.name:
                self._entries[item.entry.name] = item.entry

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def left_out(self) -> str:
        """Return what could not be used, in brackets, to end a sentence with."""
        return self._registry.left_out()

    def names(self) -> list[str]:
        """Return the names of all operations, those palettized by default first."""
        return sorted(self._entries, key=lambda name: not self.is_default(name))

    def spelled(self, name: str) -> str:
        """Return the operation that goes by a name, such as ``"__matmul__"``; else the name.

        What torch has in place too goes by that name as well: ``"addmm_"`` is ``"addmm"``.

        Raises:
            DuplicatePluginError: two plug-ins give the name, or the alias, to one of theirs.
        """
        if name not in self._named and hasattr(Tensor, name):
            name = name.removesuffix("_") if name[:-1] in self._named else name
        if name not in self._named:
            return name
        return self._registry.only(self._named[name], repr(name)).entry.name

    def named(self, name: str) -> str | None:
        """Return the operation that goes by a name in a call, or None where two claim it."""
        try:
            return self.spelled(name)
        except DuplicatePluginError:
            return None

    def aliases(self, name: str) -> list[str]:
        """Return the other names of an operation."""
        return [alias for alias in self._entries[name].names() if alias != name]

    def instead_of(self, internal_form: str) -> list[str]:
        """Return the operations that become ``internal_form`` inside."""
        entries = self._entries.values()
        return [entry.name for entry in entries if internal_form in entry.internal_forms]

    def is_default(self, op_type: str) -> bool:
        """Return whether weights of this operation are palettized without being asked for."""
        return op_type in self._entries and self._entries[op_type].is_default

    def takes_matrices(self, op_type: str) -> bool:
        """Return whether weights of this operation are matrices, tables of rows or kernels."""
        return op_type in self._entries and self._entries[op_type].takes_matrices

    def understands(self, op_type: str) -> bool:
        """Return whether somebody says how inputs of this operation meet its weight."""
        return op_type in self._entries and self._entries[op_type].factory is not plain

    def of_module(self, type_name: str) -> str | None:
        """Return the operation that modules of a type are made for, unless several claim it.

        Args:
            type_name: canonical name of the type.
        """
        names = self._modules.get(type_name, ())
        return next(iter(names)) if len(names) == 1 else None

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
        """
        if op_type not in self._entries or weight.dim() == 0:
            return None
        if weight.dim() == 1:
            return 0  # most are biases
        (item,) = self._named[op_type]
        if item.entry.factory is plain and not item.entry.argument_axes:
            return _within(item.entry.channel_axis, weight.dim())
        call = bind(item.entry, func, args, kwargs)
        axis = self._operation(item).channel_axis(call, weight)
        if axis is not None:
            return axis
        name = next((name for name, value in call.arguments.items() if value is weight), "")
        stated = item.entry.argument_axes.get(name, item.entry.channel_axis)
        return _within(stated, weight.dim())

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
        """
        if op_type not in self._entries:
            return []
        (item,) = self._named[op_type]
        return list(self._operation(item).consumptions(bind(item.entry, func, args, kwargs)))

    def called(self, name: str) -> str:
        """Return the operation that goes by a name in a call, or the name itself.

        What two plug-ins claim is an error where a config selects it; in a call nobody has.
        """
        found = self._called.get(name)
        if found is None:
            found = self._called[name] = self.named(name) or name
        return found

    def _operation(self, item: Registered[OperationEntry]) -> Operation:
        name = item.entry.name
        if name not in self._made:
            self._made[name] = make_operation(item)
        return self._made[name]


def _within(axis: int, rank: int) -> int:
    return min(max(axis + rank if axis < 0 else axis, 0), max(rank - 1, 0))


def _defined(path: str) -> str:
    """Return where a module type is defined, as far as it is imported."""
    found = find_imported(path)
    return path if found is None else f"{found.__module__}.{found.__qualname__}"


_latest: list[tuple[Catalog, OperationTable]] = []


def installed_operations() -> OperationTable:
    """Return the table of what is installed."""
    return operations_of(get_catalog())


def operations_of(catalog: Catalog) -> OperationTable:
    """Return the table of a catalog; what cannot be made is left out, and warned of once."""
    if not _latest or _latest[0][0] is not catalog:
        usable = usable_operations(catalog)
        # Kept before it warns: a warning may be made an error.
        _latest[:] = [(catalog, OperationTable(usable.operations))]
        for each in usable.quarantined[len(catalog.quarantined) :]:
            warn(
                f"{each.distribution} is left out: {each.error}; uninstall or block it, "
                "`palette plugins` lists what is not usable",
                stacklevel=3,
            )
    return _latest[0][1]


def op_type_of(func: Any) -> str | None:
    """Return the name of what was called, such as ``"linear"`` or ``"ns.op"``.

    Args:
        func: as ``__torch_function__`` receives it.

    Returns:
        None when it only looks at a tensor, or hands it on as it is.
    """
    name = called_name(func)
    if name in ACCESSORS:
        return None
    return installed_operations().called(name)
