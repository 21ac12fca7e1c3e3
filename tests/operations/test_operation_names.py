"""Names of operations: one thing, one name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from palette_core.operations import canonical_op_type, installed_operations
from palette_core.operations.table import op_type_of

TABLE = installed_operations()
KNOWN_OP_TYPES = [name for name in TABLE.names() if "." not in name]
DEFAULT_OP_TYPES = [name for name in KNOWN_OP_TYPES if TABLE.is_default(name)]
OPT_IN_OP_TYPES = [name for name in KNOWN_OP_TYPES if not TABLE.is_default(name)]


@pytest.mark.parametrize("op", KNOWN_OP_TYPES)
def test_every_documented_spelling_of_an_operation(op: str) -> None:
    for key in (op, f"aten.{op}", f"torch.ops.aten.{op}", f"torch.nn.functional.{op}"):
        assert canonical_op_type(key) == op


@pytest.mark.parametrize("op", KNOWN_OP_TYPES)
def test_every_overload_that_torch_has_of_an_operation(op: str) -> None:
    packet = getattr(torch.ops.aten, op, None)
    for overload in packet.overloads() if packet is not None else ["default"]:
        assert canonical_op_type(f"aten.{op}.{overload}") == op
        assert canonical_op_type(f"torch.ops.aten.{op}.{overload}") == op


def test_the_documented_operations_are_covered_by_default() -> None:
    assert set(DEFAULT_OP_TYPES) == {
        *("linear", "conv1d", "conv2d", "conv3d", "multi_head_attention_forward"),
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    }
    assert not set(DEFAULT_OP_TYPES) & set(OPT_IN_OP_TYPES)
    assert {"embedding", "embedding_bag", "lstm", "gru", "rnn_tanh"} <= set(OPT_IN_OP_TYPES)


@pytest.mark.parametrize("op", KNOWN_OP_TYPES)
def test_operations_are_functions_that_torch_has(op: str) -> None:
    names = (op, *installed_operations().aliases(op))
    assert any(hasattr(place, name) for place in (nn.functional, torch) for name in names)


@pytest.mark.parametrize("op", ["addmm", "baddbmm"])
def test_forms_in_place_are_the_same_operation(op: str) -> None:
    for key in (f"{op}_", f"aten.{op}_", f"aten.{op}_.default", f"torch.ops.aten.{op}_"):
        assert canonical_op_type(key) == op
    assert op_type_of(getattr(torch.Tensor, f"{op}_")) == op
    assert op_type_of(getattr(torch.ops.aten, f"{op}_").default) == op


@pytest.mark.parametrize("key", ["linear_", "matmul_", "addmm__"])
def test_forms_in_place_that_torch_lacks_are_no_operations(key: str) -> None:
    with pytest.raises(ValueError, match="unknown op type"):
        canonical_op_type(key)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("linaer", "unknown op type 'linaer'; did you mean 'linear'"),
        ("aten.liner.default", "did you mean 'linear'"),
        ("conv", "did you mean 'conv"),
        ("Linear", "'Linear': that is a module type; the op type is 'linear'"),
        ("torch.nn.Conv2d", "the op type is 'conv2d' .*module_type_configs"),
        ("nn.EmbeddingBag", "the op type is 'embedding_bag'"),
        ("ReLU", "that is a module type; not an op type"),
        ("aten.convolution.default", "use 'conv1d', 'conv2d', .* or 'conv_transpose3d' instead"),
        ("aten._embedding_bag.default", "use 'embedding_bag' instead"),
        ("aten.linear.nope", "no overload 'nope'; write 'linear', or one of its overloads default"),
        ("", "op types are linear, conv1d"),
        ("aten", "unknown op type 'aten'"),
        ("aten.", "unknown op type"),
        ("linear.default", "did you mean 'linear'"),
        (3, "op types are names such as 'linear', got 3"),
    ],
)
def test_what_is_no_operation(key: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        canonical_op_type(key)
