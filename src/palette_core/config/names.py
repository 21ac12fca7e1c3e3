"""Canonical names of module types, so that every spelling means one thing.

Nothing here imports a module on behalf of a configuration: names are looked up only among what
the process has imported already.
"""

from __future__ import annotations

import functools
import sys
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

from torch import nn

from palette_core._common.imported import find_imported
from palette_core.errors import nearest_name

_PATTERN_SIGNS = frozenset("*+?()[]{}|^$\\")


def type_name(cls: type) -> str:
    """Return where a class is defined: ``"torch.nn.modules.linear.Linear"``."""
    return f"{cls.__module__}.{cls.__qualname__}"


def canonical_type_name(key: str | type[nn.Module]) -> str:
    """Return the name under which a module type is defined.

    Args:
        key: an ``nn.Module`` class or a fully qualified name of one, by any path: both
            ``"torch.nn.Linear"`` and ``"torch.nn.modules.linear.Linear"`` give the latter.

    Returns:
        ``module.qualname`` of the class; ``key`` itself when its module is not imported.

    Raises:
        TypeError: neither a string nor an ``nn.Module`` class.
        ValueError: not fully qualified, or no such class in ``torch``.
    """
    if isinstance(key, type):
        return type_name(_check_module_class(key, key.__name__))
    if not isinstance(key, str):
        raise TypeError(
            "keys of module_type_configs must be nn.Module subclasses or their fully qualified "
            f"names, got {key!r}"
        )
    if "." not in key:
        raise ValueError(f"expected a fully qualified name, got {key!r}{_qualified(key)}")
    if not all(key.split(".")) or _PATTERN_SIGNS & set(key):
        raise ValueError(
            f"{key!r} is not the name of a class; module types are matched exactly "
            "(patterns go into module_name_configs)"
        )
    found = find_imported(key)
    if found is not None:
        return type_name(_check_module_class(found, key))
    if key.startswith("torch.") and not _might_be_imported_later(key):
        raise ValueError(f"there is no module type {key!r}{_nearest_torch_class(key)}")
    return key


def _check_module_class(found: Any, shown: str) -> type[nn.Module]:
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise TypeError(
            "keys of module_type_configs must be nn.Module subclasses or their fully qualified "
            f"names, and {shown!r} is not an nn.Module"
        )
    return found


def _might_be_imported_later(key: str) -> bool:
    """Return whether a prefix of ``key`` is a submodule that exists but is not imported."""
    parts = key.split(".")
    for end in range(1, len(parts) - 1):
        parent = sys.modules.get(".".join(parts[:end]))
        child = ".".join(parts[: end + 1])
        if not isinstance(parent, ModuleType):
            return False
        if child not in sys.modules:
            where = getattr(parent, "__path__", None)
            return where is not None and PathFinder.find_spec(child, where) is not None
    return False


@functools.cache
def _torch_classes() -> dict[str, str]:
    return {
        name: f"torch.nn.{name}"
        for name, value in vars(nn).items()
        if isinstance(value, type) and issubclass(value, nn.Module)
    }


def _nearest_torch_class(key: str) -> str:
    classes = _torch_classes()
    near = nearest_name(key.rsplit(".", 1)[-1], classes, 0.6)
    return "" if near is None else f"; did you mean {classes[near]!r}?"


def _qualified(key: str) -> str:
    classes = {name.lower(): full for name, full in _torch_classes().items()}
    near = nearest_name(key.lower(), classes, 0.7)
    if near is not None:
        return f"; did you mean {classes[near]!r}?"
    return f", such as 'torch.nn.Linear' or 'my_package.layers.{key}'"
