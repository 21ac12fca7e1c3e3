"""Operations palettized by default, those that wait to be asked, and why a tensor stays dense."""

from __future__ import annotations

from collections.abc import Sequence

from palette_core.config.names import DEFAULT_OP_TYPES, KNOWN_OP_TYPES
from palette_core.model.graph import TensorRecord

_DEFAULT_STATES = ("weight", "in_proj_weight")

_NN = "torch.nn.modules."
_OP_OF_MODULE = {
    f"{_NN}linear.Linear": "linear",
    f"{_NN}linear.NonDynamicallyQuantizableLinear": "multi_head_attention_forward",
    f"{_NN}activation.MultiheadAttention": "multi_head_attention_forward",
    f"{_NN}conv.Conv1d": "conv1d",
    f"{_NN}conv.Conv2d": "conv2d",
    f"{_NN}conv.Conv3d": "conv3d",
    f"{_NN}conv.ConvTranspose1d": "conv_transpose1d",
    f"{_NN}conv.ConvTranspose2d": "conv_transpose2d",
    f"{_NN}conv.ConvTranspose3d": "conv_transpose3d",
    f"{_NN}sparse.Embedding": "embedding",
    f"{_NN}sparse.EmbeddingBag": "embedding_bag",
}


def is_default(op_type: str) -> bool:
    """Whether weights of this operation are palettized without being asked for."""
    return op_type in DEFAULT_OP_TYPES


def main_op_type(tensor: TensorRecord, module_types: Sequence[str]) -> str | None:
    """Return the operation that a tensor is for: from its uses, else from its owners' types."""
    used = [use.op_type for use in tensor.uses]
    implied = [_OP_OF_MODULE[name] for name in module_types if name in _OP_OF_MODULE]
    ranked = [*filter(is_default, used), *implied, *used]
    return ranked[0] if ranked else None


def why_not(tensor: TensorRecord, op_type: str, key: str, by_name: bool) -> tuple[bool, str]:
    """Return whether a rule asked for this tensor, and why an opt-in operation keeps it dense.

    Args:
        tensor: the tensor.
        op_type: an operation that receives it, and is not palettized by default.
        key: the state key of the rule.
        by_name: the rule matches the name of the module itself.
    """
    computed = not any(use.op_type in KNOWN_OP_TYPES for use in tensor.uses)
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
    if op_type in KNOWN_OP_TYPES:
        places = f"{op_type!r} in op_type_config, {places}"
    # Norms and biases have the same state names; nobody means them without saying so.
    asked = len(tensor.shape) > 1 and (by_name or _is_explicit(key))
    return asked, f"operation {op_type!r} is palettized only when asked for: name {places}"


def why_unused(
    tensor: TensorRecord, module_types: Sequence[str], key: str, by_choice: bool
) -> tuple[bool, str]:
    """Return whether a rule asked for a tensor that no operation received, and why it stays dense.

    Args:
        tensor: the tensor.
        module_types: the types of its owners.
        key: the state key of the rule.
        by_choice: the rule opts the module in, by type or literal name.
    """
    chosen = by_choice or _is_explicit(key)
    covered = any(_is_covered(name, key) for name in module_types) and tensor.kind == "parameter"
    asked = len(tensor.shape) > 1 and (chosen or covered or tensor.obstacle is not None)
    if tensor.obstacle is not None:
        return asked, tensor.obstacle
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


def _is_covered(module_type: str, key: str) -> bool:
    """Whether such a module's weights would be palettized by default, had an operation had them.

    Of a module that is not torch's own, what it calls a weight counts as one.
    """
    if module_type.startswith(_NN):
        return is_default(_OP_OF_MODULE.get(module_type, ""))
    return key != "*"
