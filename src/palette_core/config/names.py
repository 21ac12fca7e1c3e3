"""Canonical names of module types and operations, so that every spelling means one thing.

Nothing here imports a module on behalf of a configuration: names are looked up only among what
the process has imported already.
"""

from __future__ import annotations

import difflib
import re
import sys
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

import torch
from torch import nn

from palette_core.errors import did_you_mean

DEFAULT_OP_TYPES: tuple[str, ...] = (
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "multi_head_attention_forward",
)
"""Operations whose weights a configuration covers without naming them."""

OPT_IN_OP_TYPES: tuple[str, ...] = (
    "embedding",
    "embedding_bag",
    "bilinear",
    "lstm",
    "gru",
    "rnn_tanh",
    "rnn_relu",
    "lstm_cell",
    "gru_cell",
    "rnn_tanh_cell",
    "rnn_relu_cell",
    "matmul",
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "einsum",
    "scaled_dot_product_attention",
    "layer_norm",
    "rms_norm",
    "group_norm",
    "batch_norm",
    "instance_norm",
    "prelu",
    "add",
    "sub",
    "mul",
    "div",
)
"""Operations that are palettized only when an op or module type, or a name, asks for them."""

KNOWN_OP_TYPES: tuple[str, ...] = DEFAULT_OP_TYPES + OPT_IN_OP_TYPES
"""Every operation that a configuration may name."""

_OP_PREFIX = re.compile(r"^(?:torch\.nn\.functional\.|torch\.ops\.aten\.|aten\.|torch\.)")

_PATTERN_SIGNS = frozenset("*+?()[]{}|^$\\")

# aten operators that the functional ones decompose into, which nobody calls by that name.
_CONVOLUTIONS = tuple(name for name in DEFAULT_OP_TYPES if name.startswith("conv"))
_INSTEAD: dict[str, tuple[str, ...]] = {
    "convolution": _CONVOLUTIONS,
    "_convolution": _CONVOLUTIONS,
    "convolution_overrideable": _CONVOLUTIONS,
    "_embedding_bag": ("embedding_bag",),
    "_native_multi_head_attention": ("multi_head_attention_forward",),
    "native_layer_norm": ("layer_norm",),
    "native_group_norm": ("group_norm",),
    "native_batch_norm": ("batch_norm",),
    "_trilinear": ("bilinear",),
}


def canonical_op_type(key: str) -> str:
    """Return the functional name of an operation type.

    Args:
        key: ``"linear"``, ``"torch.nn.functional.linear"``, ``"aten.linear"``,
            ``"aten.linear.default"`` or ``"torch.ops.aten.linear.default"``.

    Raises:
        ValueError: no operation that a configuration may name; the message has the nearest.
    """
    if not isinstance(key, str):
        raise ValueError(f"op types are names such as 'linear', got {key!r}")
    prefix = _OP_PREFIX.match(key)
    is_aten = prefix is not None and "aten" in prefix.group()
    name = key[prefix.end() :] if prefix else key
    name, _, overload = name.partition(".") if is_aten else (name, "", "")
    if name in _INSTEAD:
        raise ValueError(
            f"op type {key!r} is an internal form; use {_one_of(_INSTEAD[name])} instead"
        )
    if name not in KNOWN_OP_TYPES:
        raise ValueError(f"unknown op type {key!r}{_nearest_op(key, name)}")
    if overload:
        _check_overload(key, name, overload)
    return name


def _check_overload(key: str, name: str, overload: str) -> None:
    packet = getattr(torch.ops.aten, name, None)
    known = packet.overloads() if packet is not None else ["default"]
    if overload not in known:
        raise ValueError(
            f"unknown op type {key!r}: {name!r} has no overload {overload!r}; "
            f"write {name!r}, or one of its overloads {', '.join(known)}"
        )


def _nearest_op(key: str, name: str) -> str:
    last = key.rsplit(".", 1)[-1]
    if _find_class(f"torch.nn.{last}") is not None:
        lowered = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", last).lower()
        op = f"the op type is {lowered!r}" if lowered in KNOWN_OP_TYPES else "not an op type"
        return f": that is a module type; {op} (module types go into module_type_configs)"
    hints = (did_you_mean(word.lower(), KNOWN_OP_TYPES) for word in (name, last))
    return next(filter(None, hints), "; op types are " + ", ".join(KNOWN_OP_TYPES))


def _one_of(names: tuple[str, ...]) -> str:
    *rest, last = (repr(name) for name in names)
    return f"{', '.join(rest)} or {last}" if rest else last


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
    found = _find_class(key)
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


def _find_class(key: str) -> Any:
    """Follow a dotted name from the longest imported module, running no ``__getattr__``."""
    parts = key.split(".")
    for end in range(len(parts) - 1, 0, -1):
        value: Any = sys.modules.get(".".join(parts[:end]))
        for part in parts[end:]:
            value = vars(value).get(part) if hasattr(value, "__dict__") else None
        if value is not None:
            return value
    return None


def _might_be_imported_later(key: str) -> bool:
    """Say whether a prefix of ``key`` is a submodule that exists but is not imported."""
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


def _torch_classes() -> dict[str, str]:
    return {
        name: f"torch.nn.{name}"
        for name, value in vars(nn).items()
        if isinstance(value, type) and issubclass(value, nn.Module)
    }


def _nearest_torch_class(key: str) -> str:
    classes = _torch_classes()
    near = difflib.get_close_matches(key.rsplit(".", 1)[-1], classes, n=1, cutoff=0.6)
    return f"; did you mean {classes[near[0]]!r}?" if near else ""


def _qualified(key: str) -> str:
    classes = {name.lower(): full for name, full in _torch_classes().items()}
    near = difflib.get_close_matches(key.lower(), classes, n=1, cutoff=0.7)
    if near:
        return f"; did you mean {classes[near[0]]!r}?"
    return f", such as 'torch.nn.Linear' or 'my_package.layers.{key}'"
