"""Configs for the small models, with the bits that every tensor should get.

The configs are built from a `Library`, so that the same cases also run under the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from plan_models import (
    Attention,
    Buffered,
    Computed,
    Deep,
    OptIn,
    OwnParameters,
    Shared,
    Subclass,
    Subclassed,
    Tied,
    TiedEmbedding,
    TiedUnderAnotherName,
    Transposed,
    Unreached,
    UsedTwice,
    encoder,
    lazy,
    normed,
)
from torch import nn


@dataclass(frozen=True)
class Library:
    """The five classes that configs are made of, and short forms."""

    K: Any
    M: Any
    O: Any  # noqa: E741
    S: Any
    G: Any

    def states(self, bits: int) -> dict[str, Any]:
        return dict.fromkeys(("weight", "in_proj_weight"), self.S(n_bits=bits))

    def w(self, bits: int, **more: Any) -> Any:
        return self.M(op_state_spec=self.states(bits), **more)

    def every(self, bits: int, **more: Any) -> Any:
        return self.M(op_state_spec={"*": self.S(n_bits=bits)}, **more)

    def op(self, bits: int) -> Any:
        return self.O(op_state_spec=self.states(bits))

    def every_op(self, bits: int) -> Any:
        return self.O(op_state_spec={"*": self.S(n_bits=bits)})

    def state(self, **bits: int) -> Any:
        states = {n: self.S(n_bits=b) if b else None for n, b in bits.items()}
        return self.M(op_state_spec=None, module_state_spec=states)

    def only(self, **more: Any) -> Any:
        return self.K(global_config=None, **more)

    def grouped(self, axis: int | None, size: int) -> Any:
        spec = self.S(n_bits=2, granularity=self.G(axis=axis, group_size=size))
        return self.K(global_config=self.M(op_state_spec={"weight": spec}))


@dataclass(frozen=True)
class Case:
    """A model, a config, and the bits of each tensor (by first name) that is palettized.

    ``differs`` says why the reference does something else.
    """

    name: str
    model: Callable[[], nn.Module]
    config: Callable[[Library], Any]
    bits: dict[str, int]
    differs: str = ""


def _all(names: str, bits: int) -> dict[str, int]:
    return dict.fromkeys(names.split(), bits)


DEEP = "a.weight b.0.weight b.1.0.weight c.0.weight"
TIED_HIGHEST = "the reference goes by the use that runs last"
EMBEDDING = "the reference has no embeddings"
OUT_PROJ = "the reference ignores configs of out_proj, which never runs as a module"
L, Q = nn.Linear, nn.Sequential


CASES = [
    # defaults
    Case("default deep", Deep, lambda b: b.K(), _all(DEEP, 4)),
    Case("default own", OwnParameters, lambda b: b.K(), {"lin.weight": 4}),
    Case("default tied", Tied, lambda b: b.K(), {"a.weight": 4}),
    Case("default tied embedding", TiedEmbedding, lambda b: b.K(), {"e.weight": 4}),
    Case("default shared", Shared, lambda b: b.K(), _all("a.weight c.weight", 4)),
    Case(
        "default attention",
        Attention,
        lambda b: b.K(),
        _all("m.in_proj_weight m.out_proj.weight k.out_proj.weight", 4),
    ),
    Case(
        "default convolutions",
        Transposed,
        lambda b: b.K(),
        _all("c1.weight t1.weight c2.weight t2.weight c3.weight t3.weight", 4),
    ),
    Case("default subclass", Subclassed, lambda b: b.K(), _all("a.weight b.weight", 4)),
    Case("default opt-in", OptIn, lambda b: b.K(), {"lin.weight": 4}),
    Case("default buffer", Buffered, lambda b: b.K(), _all("weight lin.weight", 4)),
    Case("default computed", Computed, lambda b: b.K(), {"lin.weight": 4}),
    Case("default unreached", Unreached, lambda b: b.K(), {"a.weight": 4}),
    Case("default lazy", lazy, lambda b: b.K(), _all("0.weight 1.weight", 4)),
    Case(
        "default parametrized",
        normed,
        lambda b: b.K(),
        _all("0.weight 1.weight", 4),
        "the reference leaves parametrized weights out",
    ),
    Case(
        "default encoder",
        encoder,
        lambda b: b.K(),
        _all(
            "layers.0.self_attn.in_proj_weight layers.0.self_attn.out_proj.weight "
            "layers.0.linear1.weight layers.0.linear2.weight",
            4,
        ),
    ),
    # every state
    Case(
        "star attention",
        Attention,
        lambda b: b.K(global_config=b.every(2)),
        _all(
            "m.in_proj_weight m.in_proj_bias m.out_proj.weight m.out_proj.bias k.in_proj_bias "
            "k.q_proj_weight k.k_proj_weight k.v_proj_weight k.out_proj.weight k.out_proj.bias",
            2,
        ),
    ),
    Case(
        "star own",
        OwnParameters,
        lambda b: b.K(global_config=b.every(2)),
        _all("u v lin.weight lin.bias", 2),
    ),
    Case(
        "star opt-in",
        OptIn,
        lambda b: b.K(global_config=b.every(2)),
        _all("lin.weight lin.bias", 2),
    ),
    Case(
        "key beats star",
        Shared,
        lambda b: b.K(global_config=b.M(op_state_spec={"weight": None, "*": b.S(n_bits=2)})),
        _all("a.bias c.bias", 2),
    ),
    Case(
        "key beats star that is off",
        Shared,
        lambda b: b.K(global_config=b.M(op_state_spec={"*": None, "weight": b.S(n_bits=2)})),
        _all("a.weight c.weight", 2),
    ),
    # levels
    Case(
        "name over type over global",
        Deep,
        lambda b: b.K(
            global_config=b.w(3),
            module_type_configs={Q: b.w(6)},
            module_name_configs={r"b\.0": b.w(8)},
        ),
        {"a.weight": 3, "b.0.weight": 8, "b.1.0.weight": 6, "c.0.weight": 3},
    ),
    Case(
        "type off, name on",
        Deep,
        lambda b: b.K(
            global_config=b.w(3), module_type_configs={L: None}, module_name_configs={"b": b.w(6)}
        ),
        _all("b.0.weight b.1.0.weight", 6),
    ),
    Case(
        "name off",
        Deep,
        lambda b: b.K(global_config=b.w(3), module_name_configs={"b": None}),
        _all("a.weight c.0.weight", 3),
    ),
    Case(
        "parent declared last",
        Deep,
        lambda b: b.only(module_name_configs={r"b\.0": b.w(8), "b": b.w(2)}),
        _all("b.0.weight b.1.0.weight", 2),
    ),
    Case(
        "child declared last",
        Deep,
        lambda b: b.only(module_name_configs={"b": b.w(2), r"b\.0": b.w(8)}),
        {"b.0.weight": 8, "b.1.0.weight": 2},
    ),
    Case(
        "container type declared last",
        Deep,
        lambda b: b.only(module_type_configs={L: b.w(2), Q: b.w(8)}),
        {"a.weight": 2, "b.0.weight": 8, "b.1.0.weight": 8, "c.0.weight": 2},
    ),
    Case(
        "container type declared first",
        Deep,
        lambda b: b.only(module_type_configs={Q: b.w(8), L: b.w(2)}),
        _all(DEEP, 2),
    ),
    Case(
        "root by its empty name",
        Deep,
        lambda b: b.only(module_name_configs={"": b.w(2), "c": b.w(8)}),
        _all(DEEP, 2) | {"c.0.weight": 8},
    ),
    Case(
        "patterns match all of the name",
        Deep,
        lambda b: b.only(module_name_configs={r"b\.\d": b.w(2), "c.": b.w(8)}),
        _all("b.0.weight b.1.0.weight", 2),
    ),
    Case(
        "aliases of a shared module",
        Shared,
        lambda b: b.only(module_name_configs={"b": b.w(2)}),
        {"a.weight": 2},
    ),
    Case(
        "aliases declared last",
        Shared,
        lambda b: b.only(module_name_configs={"b": b.w(2), "a": b.w(8)}),
        {"a.weight": 8},
    ),
    Case(
        "exact type",
        Subclassed,
        lambda b: b.only(module_type_configs={L: b.w(2)}),
        {"b.weight": 2},
    ),
    Case(
        "subclass by its own type",
        Subclassed,
        lambda b: b.only(module_type_configs={Subclass: b.w(2)}),
        {"a.weight": 2},
    ),
    Case(
        "parametrized type",
        normed,
        lambda b: b.only(module_type_configs={L: b.w(2)}),
        _all("0.weight 1.weight", 2),
        "the reference leaves parametrized weights out",
    ),
    # module_state_spec
    Case(
        "module state does not recurse",
        Deep,
        lambda b: b.only(module_name_configs={"b": b.state(weight=2)}),
        {},
    ),
    Case(
        "module state of the module",
        Deep,
        lambda b: b.only(module_name_configs={r"b\.0": b.state(weight=2)}),
        {"b.0.weight": 2},
    ),
    Case(
        "module state by type",
        Deep,
        lambda b: b.only(module_type_configs={L: b.state(weight=2, bias=3)}),
        _all(DEEP, 2) | _all(DEEP.replace("weight", "bias"), 3),
    ),
    Case(
        "module state off",
        Deep,
        lambda b: b.only(module_name_configs={r"b\.0": b.w(4, module_state_spec={"weight": None})}),
        {},
    ),
    Case(
        "module state of any operation",
        OptIn,
        lambda b: b.only(
            module_type_configs={nn.LayerNorm: b.state(weight=2), nn.Embedding: b.state(weight=3)}
        ),
        {"norm.weight": 2, "e.weight": 3},
    ),
    Case(
        "module state of buffers",
        OptIn,
        lambda b: b.only(module_name_configs={"bn": b.state(running_mean=1)}),
        {"bn.running_mean": 1},
    ),
    Case(
        "module state of a computed tensor",
        Computed,
        lambda b: b.only(module_name_configs={"": b.state(weight=2)}),
        {"weight": 2},
    ),
    Case(
        "module state over all of the operation's",
        Deep,
        lambda b: b.only(
            module_name_configs={
                "a": b.w(
                    3,
                    op_type_config={"linear": b.op(4)},
                    op_name_config={r"a\.linear": b.op(6)},
                    module_state_spec={"weight": b.S(n_bits=8)},
                )
            }
        ),
        {"a.weight": 8},
    ),
    # operations
    Case(
        "op name over op type over state",
        Deep,
        lambda b: b.K(
            global_config=b.w(
                3,
                op_type_config={"linear": b.op(4)},
                op_name_config={r"b\.0\.linear": b.op(6)},
            )
        ),
        _all(DEEP, 4) | {"b.0.weight": 6},
    ),
    Case(
        "op type off",
        Deep,
        lambda b: b.K(global_config=b.w(3, op_type_config={"linear": None})),
        {},
    ),
    Case(
        "op name off",
        Deep,
        lambda b: b.K(global_config=b.w(3, op_name_config={r"b\.0\.linear": None})),
        _all("a.weight b.1.0.weight c.0.weight", 3),
    ),
    Case(
        "an empty op config does not fall back",
        Deep,
        lambda b: b.K(global_config=b.w(3, op_type_config={"linear": b.O(op_state_spec={})})),
        {},
    ),
    Case(
        "op name declared last",
        Deep,
        lambda b: b.K(
            global_config=b.w(3, op_name_config={r"b\.0\.linear": b.op(8), "b.*": b.op(2)})
        ),
        {"a.weight": 3, "b.0.weight": 2, "b.1.0.weight": 2, "c.0.weight": 3},
    ),
    Case(
        "attention is not linear",
        Attention,
        lambda b: b.K(global_config=b.w(3, op_type_config={"linear": b.op(8)})),
        _all("m.in_proj_weight m.out_proj.weight k.out_proj.weight", 3),
    ),
    Case(
        "attention by its operation",
        Attention,
        lambda b: b.K(
            global_config=b.w(3, op_name_config={r"m\.multi_head_attention_forward": b.op(8)})
        ),
        {"m.in_proj_weight": 8, "m.out_proj.weight": 8, "k.out_proj.weight": 3},
    ),
    Case(
        "attention off",
        Attention,
        lambda b: b.K(global_config=b.w(3), module_name_configs={"m": None}),
        {"k.out_proj.weight": 3},
    ),
    Case(
        "out_proj by name",
        Attention,
        lambda b: b.K(global_config=b.w(3), module_name_configs={r"m\.out_proj": b.w(8)}),
        {"m.in_proj_weight": 3, "m.out_proj.weight": 8, "k.out_proj.weight": 3},
        OUT_PROJ,
    ),
    Case(
        "the second functional call",
        OwnParameters,
        lambda b: b.K(global_config=b.every(3, op_name_config={"linear_1": b.every_op(8)})),
        {"u": 3, "v": 8, "lin.weight": 3, "lin.bias": 3},
    ),
    Case(
        "a module called twice has one operation",
        Shared,
        lambda b: b.K(global_config=b.w(3, op_name_config={r"a\.linear": b.op(8)})),
        {"a.weight": 8, "c.weight": 3},
    ),
    # one tensor, several operations or modules
    Case(
        "used twice: the more specific",
        UsedTwice,
        lambda b: b.K(global_config=b.every(3, op_name_config={"linear": b.every_op(8)})),
        {"w": 8},
        TIED_HIGHEST,
    ),
    Case(
        "used twice: declared last",
        UsedTwice,
        lambda b: b.K(
            global_config=b.every(
                3, op_name_config={"linear_1": b.every_op(8), "linear": b.every_op(2)}
            )
        ),
        {"w": 2},
        TIED_HIGHEST,
    ),
    Case(
        "used twice: one use off",
        UsedTwice,
        lambda b: b.K(global_config=b.every(3, op_name_config={"linear_1": None})),
        {},
    ),
    Case(
        "tied: name over type",
        Tied,
        lambda b: b.only(module_type_configs={L: b.w(8)}, module_name_configs={"b": b.w(2)}),
        {"a.weight": 2},
    ),
    Case(
        "tied: one owner off",
        Tied,
        lambda b: b.K(global_config=b.w(3), module_name_configs={"b": None}),
        {},
    ),
    Case(
        "tied: the other owner off",
        Tied,
        lambda b: b.K(global_config=b.w(3), module_name_configs={"a": None}),
        {},
    ),
    Case(
        "tied: declared last, off",
        Tied,
        lambda b: b.only(module_name_configs={"a": b.w(2), "b": None}),
        {},
    ),
    Case(
        "tied: declared last, on",
        Tied,
        lambda b: b.only(module_name_configs={"a": None, "b": b.w(2)}),
        {"a.weight": 2},
    ),
    Case(
        "tied: declared last, both on",
        Tied,
        lambda b: b.only(module_name_configs={"a": b.w(2), "b": b.w(8)}),
        {"a.weight": 8},
    ),
    Case(
        "tied: module state over operations",
        Tied,
        lambda b: b.only(module_name_configs={"a": b.state(weight=2), "b": b.w(8)}),
        {"a.weight": 2},
    ),
    Case(
        "tied: local names of all owners",
        TiedUnderAnotherName,
        lambda b: b.only(module_name_configs={"a": b.M(op_state_spec={"w2": b.S(n_bits=2)})}),
        {"w2": 2},
    ),
    Case(
        "tied: module state under another owner's name",
        TiedUnderAnotherName,
        lambda b: b.only(module_name_configs={"": b.state(weight=2)}),
        {"w2": 2},
    ),
    Case(
        "tied embedding by the linear",
        TiedEmbedding,
        lambda b: b.only(module_name_configs={"o": b.w(2)}),
        {"e.weight": 2},
    ),
    Case(
        "tied embedding off",
        TiedEmbedding,
        lambda b: b.K(global_config=b.w(3), module_name_configs={"e": None}),
        {},
        EMBEDDING,
    ),
    # axes: only the axis with 8 channels can be cut into groups of 8
    Case(
        "groups on the output channels",
        Transposed,
        lambda b: b.grouped(None, 8),
        _all("t1.weight t2.weight t3.weight", 2),
    ),
    Case(
        "groups on axis 0",
        Transposed,
        lambda b: b.grouped(0, 4),
        _all("c1.weight t1.weight c2.weight t2.weight c3.weight t3.weight", 2),
    ),
    Case(
        "groups on axis 1",
        Transposed,
        lambda b: b.grouped(1, 8),
        _all("c1.weight t1.weight c2.weight t2.weight c3.weight t3.weight", 2),
    ),
    Case("groups that fit nowhere", Transposed, lambda b: b.grouped(0, 8), {}),
]
