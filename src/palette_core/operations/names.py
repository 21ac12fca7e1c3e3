"""Canonical names of operations, so that every spelling means one thing."""

from __future__ import annotations

import re

import torch

from palette_core._common.imported import find_imported
from palette_core.errors import did_you_mean
from palette_core.operations.table import OperationTable, installed_operations

_PREFIX = re.compile(r"^(?:torch\.nn\.functional\.|torch\.ops\.|torch\.)")
_ATEN = "aten."
EVERY_MATRIX = "*"
"""The op type that stands for every operation whose weights are matrices."""


def canonical_op_type(key: str) -> str:
    """Return the name of an operation type; `EVERY_MATRIX` is one.

    Args:
        key: ``"linear"``, ``"torch.nn.functional.linear"``, ``"aten.linear"``,
            ``"aten.linear.default"`` or ``"torch.ops.aten.linear.default"``; of an operation of
            another library ``"ns.op"``, ``"ns::op"`` or ``"torch.ops.ns.op"``.

    Raises:
        ValueError: no operation that a configuration may name; the message has the nearest.
        DuplicatePluginError: two plug-ins register it.
    """
    if not isinstance(key, str):
        raise ValueError(f"op types are names such as 'linear', got {key!r}")
    if key == EVERY_MATRIX:
        return key
    table = installed_operations()
    dotted = _PREFIX.sub("", key.replace("::", "."))
    is_aten = dotted.startswith(_ATEN)
    name, overload = _without_overload(dotted, table)
    found = table.spelled(name)
    if found in table:
        if overload:
            _check_overload(key, name, overload, is_aten)
        return found
    instead = table.instead_of(name)
    if instead:
        raise ValueError(f"op type {key!r} is an internal form; use {_one_of(instead)} instead")
    raise ValueError(f"unknown op type {key!r}{_nearest(key, name, table)}{table.left_out()}")


def _without_overload(dotted: str, table: OperationTable) -> tuple[str, str]:
    """Return the name without aten's namespace and without an overload, and the overload."""
    if dotted.startswith(_ATEN):
        name, _, overload = dotted.removeprefix(_ATEN).partition(".")
        return name, overload
    if table.spelled(dotted) not in table and dotted.count(".") > 1:
        name, _, overload = dotted.rpartition(".")
        return name, overload
    return dotted, ""


def _check_overload(key: str, name: str, overload: str, is_aten: bool) -> None:
    namespace, _, operator = ("aten", ".", name) if is_aten else name.partition(".")
    packet = getattr(getattr(torch.ops, namespace), operator, None)
    known = packet.overloads() if packet is not None else ["default"]
    if overload not in known:
        raise ValueError(
            f"unknown op type {key!r}: {name!r} has no overload {overload!r}; "
            f"write {name!r}, or one of its overloads {', '.join(known)}"
        )


def _nearest(key: str, name: str, table: OperationTable) -> str:
    last, known = key.rsplit(".", 1)[-1], table.names()
    if find_imported(f"torch.nn.{last}") is not None:
        lowered = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", last).lower()
        op = f"the op type is {lowered!r}" if lowered in table else "not an op type"
        return f": that is a module type; {op} (module types go into module_type_configs)"
    if "." in name and name.partition(".")[0] not in table:
        hint = did_you_mean(name, (other for other in known if "." in other))
        return f": no installed plug-in registers an operation {name!r} of another library{hint}"
    hints = (did_you_mean(word.lower(), known) for word in (name, last))
    return next(filter(None, hints), "; op types are " + ", ".join(known))


def _one_of(names: list[str]) -> str:
    *rest, last = (repr(name) for name in names)
    return f"{', '.join(rest)} or {last}" if rest else last
