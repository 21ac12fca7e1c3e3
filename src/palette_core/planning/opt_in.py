"""Operations palettized by default, those that wait to be asked, and why a tensor stays dense."""

from __future__ import annotations

from collections.abc import Sequence

from palette_core.model.graph import TensorRecord
from palette_core.operations import OperationTable

_DEFAULT_STATES = ("weight", "in_proj_weight")

_NN = "torch.nn.modules."


def main_op_type(
    tensor: TensorRecord, module_types: Sequence[str], operations: OperationTable
) -> str | None:
    """Return the operation that a tensor is for: from its uses, else from its owners' types."""
    used = [use.op_type for use in tensor.uses]
    implied = [op for op in map(operations.of_module, module_types) if op is not None]
    ranked = [*filter(operations.is_default, used), *implied, *used]
    return ranked[0] if ranked else None


def why_not(
    tensor: TensorRecord, op_type: str, key: str, by_name: bool, operations: OperationTable
) -> tuple[bool, str]:
    """Return whether a rule asked for this tensor, and why an opt-in operation keeps it dense.

    Args:
        tensor: the tensor.
        op_type: an operation that receives it, and is not palettized by default.
        key: the state key of the rule.
        by_name: the rule matches the name of the module itself.
        operations: what is known of operations.
    """
    computed = not any(use.op_type in operations for use in tensor.uses)
    if computed:
        meant = tensor.kind == "parameter" and (by_name or key != "*")
        return (
            len(tensor.shape) > 1 and meant,
            f"operations receive something computed from it by {op_type!r}, not the tensor "
            "itself; module_state_spec palettizes it all the same",
        )
    places = (
        "its module's class in module_type_configs, or its module's exact name in "
        "module_name_configs"
    )
    if op_type in operations:
        places = f"{op_type!r} in op_type_config, {places}"
    # Norms and biases have the same state names; nobody means them without saying so.
    asked = len(tensor.shape) > 1 and (by_name or _is_explicit(key))
    return asked, f"operation {op_type!r} is palettized only when asked for: name {places}"


def why_unused(
    tensor: TensorRecord,
    module_types: Sequence[str],
    key: str,
    by_choice: bool,
    operations: OperationTable,
) -> tuple[bool, str]:
    """Return whether a rule asked for a tensor that no operation received, and why it stays dense.

    Args:
        tensor: the tensor.
        module_types: the types of its owners.
        key: the state key of the rule.
        by_choice: the rule opts the module in, by type or literal name.
        operations: what is known of operations.
    """
    chosen = by_choice or _is_explicit(key)
    covered = (
        tensor.unused is None
        and tensor.kind == "parameter"
        and any(_is_covered(name, key, operations) for name in module_types)
    )
    asked = len(tensor.shape) > 1 and (chosen or covered or tensor.obstacle is not None)
    if tensor.obstacle is not None:
        return asked, tensor.obstacle
    if tensor.unused is not None:
        return asked, f"{tensor.unused}; module_state_spec palettizes it all the same"
    if tensor.reached:
        return asked, (
            "no operation received the tensor itself (something computed from it, or nothing); "
            "module_state_spec palettizes it all the same"
        )
    return asked, (
        "its module did not run on example_inputs; give inputs that reach it, or use "
        "module_state_spec"
    )


def _is_explicit(key: str) -> bool:
    return key != "*" and key not in _DEFAULT_STATES


def _is_covered(module_type: str, key: str, operations: OperationTable) -> bool:
    """Return whether such weights would be palettized by default if an operation took them.

    Of a module that is not torch's own, what it calls a weight counts as one.
    """
    if module_type.startswith(_NN):
        return operations.is_default(operations.of_module(module_type) or "")
    return key != "*"
