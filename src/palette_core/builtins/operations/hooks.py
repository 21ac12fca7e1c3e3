"""Registers torch's own operations: which there are, and which are palettized unasked."""

from __future__ import annotations

from typing import Any

from palette_core.plugins import INTERFACE_VERSION, Operation, OperationEntry, hookimpl

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_T = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_CONV_FORMS = ("convolution", "_convolution", "convolution_overrideable")


def _linear(options: Any) -> Operation:
    from palette_core.builtins.operations.products import Linear

    return Linear()


def _product(options: Any) -> Operation:
    from palette_core.builtins.operations.products import Product

    return Product()


def _grouped_product(options: Any) -> Operation:
    from palette_core.builtins.operations.products import GroupedProduct

    return GroupedProduct()


def _einsum(options: Any) -> Operation:
    from palette_core.builtins.operations.einsum import Einsum

    return Einsum()


def _convolution(options: Any) -> Operation:
    from palette_core.builtins.operations.convolutions import Convolution

    return Convolution()


def _transposed_convolution(options: Any) -> Operation:
    from palette_core.builtins.operations.convolutions import TransposedConvolution

    return TransposedConvolution()


def _embedding(options: Any) -> Operation:
    from palette_core.builtins.operations.embeddings import Embedding

    return Embedding()


def _attention(options: Any) -> Operation:
    from palette_core.builtins.operations.attention import Attention

    return Attention()


def _entry(name: str, summary: str, **more: Any) -> OperationEntry:
    return OperationEntry(name=name, summary=summary, interface=INTERFACE_VERSION, **more)


def _matrix(name: str, summary: str, **more: Any) -> OperationEntry:
    return _entry(name, summary, takes_matrices=True, **more)


def _right_factor(name: str, left: str, right: str, summary: str, **more: Any) -> OperationEntry:
    """Return the entry of a product: outputs are the last axis of a right factor."""
    axes = {left: -2, right: -1}
    return _matrix(name, summary, factory=_product, channel_axis=-1, argument_axes=axes, **more)


def _defaults() -> list[OperationEntry]:
    return [
        _matrix(
            "linear",
            "x @ W.T, the operation of nn.Linear",
            factory=_linear,
            is_default=True,
            parameters=("input", "weight", "bias"),
            module_types=("torch.nn.Linear",),
        ),
        *(
            _matrix(
                f"conv{rank}d",
                f"convolution over {rank} axes",
                factory=_convolution,
                is_default=True,
                parameters=_CONV,
                internal_forms=_CONV_FORMS,
                module_types=(f"torch.nn.Conv{rank}d",),
            )
            for rank in (1, 2, 3)
        ),
        *(
            _matrix(
                f"conv_transpose{rank}d",
                f"transposed convolution over {rank} axes",
                factory=_transposed_convolution,
                is_default=True,
                channel_axis=1,
                parameters=_CONV_T,
                internal_forms=_CONV_FORMS,
                module_types=(f"torch.nn.ConvTranspose{rank}d",),
            )
            for rank in (1, 2, 3)
        ),
        _matrix(
            "multi_head_attention_forward",
            "attention with its projections, the operation of nn.MultiheadAttention",
            factory=_attention,
            is_default=True,
            internal_forms=("_native_multi_head_attention",),
            module_types=("torch.nn.MultiheadAttention",),
            part_types=("torch.nn.modules.linear.NonDynamicallyQuantizableLinear",),
        ),
    ]


def _products() -> list[OperationEntry]:
    return [
        _right_factor(
            "matmul",
            "input",
            "other",
            "x @ W or W @ x",
            parameters=("input", "other"),
            aliases=("__matmul__", "__rmatmul__", "linalg_matmul"),
        ),
        _right_factor(
            "mm", "input", "mat2", "product of two matrices", parameters=("input", "mat2")
        ),
        _right_factor(
            "bmm", "input", "mat2", "products of stacked matrices", parameters=("input", "mat2")
        ),
        _right_factor(
            "addmm",
            "mat1",
            "mat2",
            "b + x @ W, the operation of GPT-2's Conv1D",
            parameters=("input", "mat1", "mat2"),
        ),
        _right_factor(
            "baddbmm",
            "batch1",
            "batch2",
            "b + products of stacked matrices",
            parameters=("input", "batch1", "batch2"),
        ),
        _matrix(
            "grouped_mm",
            "products of runs of rows with stacked matrices, as of experts",
            factory=_grouped_product,
            channel_axis=-1,
            argument_axes={"mat_a": -2},
            parameters=("mat_a", "mat_b"),
            aliases=("_grouped_mm",),
        ),
        _matrix(
            "einsum",
            "sums of products, by a formula",
            factory=_einsum,
            parameters=("equation", "*operands"),
        ),
        _matrix("bilinear", "x1 W x2", internal_forms=("_trilinear",)),
        _entry("scaled_dot_product_attention", "attention without projections"),
    ]


def _lookups() -> list[OperationEntry]:
    return [
        _matrix(
            "embedding",
            "rows of a table by index",
            factory=_embedding,
            parameters=("first", "second"),
            module_types=("torch.nn.Embedding",),
        ),
        _matrix(
            "embedding_bag",
            "sums of rows of a table by index",
            internal_forms=("_embedding_bag",),
            module_types=("torch.nn.EmbeddingBag",),
        ),
    ]


def _recurrent() -> list[OperationEntry]:
    cells = ("lstm", "gru", "rnn_tanh", "rnn_relu")
    return [
        *(_matrix(name, "recurrent layers") for name in cells),
        *(_matrix(f"{name}_cell", "one step of a recurrent layer") for name in cells),
    ]


def _elementwise() -> list[OperationEntry]:
    norms = {
        "layer_norm": ("native_layer_norm",),
        "rms_norm": (),
        "group_norm": ("native_group_norm",),
        "batch_norm": ("native_batch_norm",),
        "instance_norm": (),
    }
    aliases = {
        "add": ("__radd__", "add_"),
        "sub": ("__rsub__", "rsub", "subtract", "sub_"),
        "mul": ("__rmul__", "multiply", "mul_"),
        "div": ("__rdiv__", "__rtruediv__", "divide", "true_divide", "div_"),
    }
    return [
        *(
            _entry(name, "normalisation with learned scales", internal_forms=forms)
            for name, forms in norms.items()
        ),
        _entry("prelu", "activation with learned slopes"),
        *(
            _entry(name, "arithmetic by element", aliases=spellings)
            for name, spellings in aliases.items()
        ),
    ]


@hookimpl
def palette_core_operations() -> list[OperationEntry]:
    """Return torch's operations, those palettized by default first."""
    return [*_defaults(), *_lookups(), *_recurrent(), *_products(), *_elementwise()]
