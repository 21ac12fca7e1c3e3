"""The name under which a config knows an operation."""

from __future__ import annotations

from typing import Any

from torch.overrides import resolve_name

# Accessors that hand a tensor on, or look at it, rather than compute with it.
_LOOKS = frozenset(
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

# Other spellings of operations that a config may name.
_SPELLINGS = {
    "__matmul__": "matmul",
    "__rmatmul__": "matmul",
    "__radd__": "add",
    "__rmul__": "mul",
    "__rsub__": "sub",
    "__rdiv__": "div",
    "__rtruediv__": "div",
    "rsub": "sub",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "add_": "add",
    "sub_": "sub",
    "mul_": "mul",
    "div_": "div",
}


def op_type_of(func: Any) -> str | None:
    """Return the functional name of what was called, such as ``"linear"``.

    Args:
        func: as ``__torch_function__`` receives it.

    Returns:
        None when it only looks at a tensor, or hands it on as it is.
    """
    packet = getattr(func, "overloadpacket", func)  # aten.linear.default -> aten.linear
    name: str = getattr(packet, "__name__", None) or str(resolve_name(packet))
    name = name.rsplit(".", 1)[-1]
    return None if name in _LOOKS else _SPELLINGS.get(name, name)
