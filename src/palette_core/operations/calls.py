"""A call and its arguments: the name of an operation, and its arguments by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch.overrides import resolve_name

from palette_core.plugins.operations import OperationCall, OperationEntry

ACCESSORS = frozenset(
    [
        "__get__",
        "__set__",
        "__repr__",
        "__format__",
        "__hash__",
        "__len__",
        "__bool__",
        "size",
        "dim",
        "ndimension",
        "numel",
        "nelement",
        "stride",
        "is_floating_point",
        "is_complex",
        "is_contiguous",
        "is_same_size",
        "is_inference",
        "get_device",
        "data_ptr",
        "element_size",
        "requires_grad_",
        "type",
        "type_as",
        "detach",
        "to",
        "new_tensor",
        "new_empty",
        "new_full",
        "new_ones",
        "new_zeros",
        "empty_like",
        "full_like",
        "ones_like",
        "zeros_like",
        "rand_like",
        "randn_like",
    ]
)
"""What hands a tensor on, or looks at it, rather than compute with it."""


COPIES = frozenset(["__getitem__", "index_select", "contiguous", "clone"])
"""What may copy a tensor, or pick along its first axis, with its other axes as they are."""


def called_name(func: Any) -> str:
    """Return the name under which something was called, with the namespace of a library."""
    packet = getattr(func, "overloadpacket", func)  # aten.linear.default -> aten.linear
    namespace, _, operator = getattr(packet, "_qualified_op_name", "").partition("::")
    if operator and namespace not in ("aten", "prims"):
        return f"{namespace}.{operator}"
    name: str = getattr(packet, "__name__", None) or str(resolve_name(packet))
    return name.rsplit(".", 1)[-1]


def bind(
    entry: OperationEntry, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> OperationCall:
    """Return a call with its arguments by name; those without a name are left out."""
    names = entry.parameters or _parameters(func)
    # Reflected: w.__rmatmul__(x) is x @ w.
    if args and getattr(func, "__name__", "").startswith("__r"):
        args = args[::-1]
    bound: dict[str, Any] = {}
    for at, name in enumerate(names[: len(args)]):
        bound[name.lstrip("*")] = tuple(args[at:]) if name.startswith("*") else args[at]
    given = dict(kwargs)
    if "self" in given and names and names[0] not in bound:
        bound[names[0]] = given.pop("self")  # what operators of aten call their first argument
    return OperationCall(func, {**bound, **given})


@lru_cache(maxsize=256)
def _parameters(func: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of positional parameters by schema or signature, or none."""
    schema = getattr(func, "_schema", None)
    if schema is None and hasattr(func, "overloads"):
        schema = getattr(func, func.overloads()[0])._schema
    if schema is not None:
        return tuple(argument.name for argument in schema.arguments if not argument.kwarg_only)
    try:
        parameters = inspect.signature(func).parameters.values()
    except (TypeError, ValueError):
        return ()
    stars = {
        inspect.Parameter.POSITIONAL_ONLY: "",
        inspect.Parameter.POSITIONAL_OR_KEYWORD: "",
        inspect.Parameter.VAR_POSITIONAL: "*",
    }
    return tuple(f"{stars[p.kind]}{p.name}" for p in parameters if p.kind in stars)
