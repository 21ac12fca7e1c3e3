"""Conversions that leave out what coremltools does over and over: the same programs, checked."""

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Program, types
from coremltools.converters.mil.mil.block import Block
from coremltools.converters.mil.mil.passes import pass_registry
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipeline, PassPipelineManager

from coreml_backend import pipelines
from coreml_backend.pipelines import propagate, unhurried


def program() -> Program:
    """Return a program that reads two look-up tables, one of them by way of a shape only."""

    def weight(name: str) -> object:
        return mb.constexpr_lut_to_dense(
            indices=np.array([27, 228], np.uint8), lut=np.arange(4, dtype=np.float32),
            shape=np.array([2, 4], np.uint32), name=name,
        )  # fmt: skip

    @mb.program(input_specs=[mb.TensorSpec((3, 4))], opset_version=ct.target.iOS17)
    def made(x):
        one, other = weight("one"), weight("other")
        first = mb.linear(x=x, weight=one, name="first")
        second = mb.linear(x=x, weight=other, name="second")
        both = mb.concat(values=[first, second], axis=0, name="both")
        more = mb.add(x=mb.relu(x=both), y=mb.relu(x=both))
        size = mb.shape(x=mb.transpose(x=other, perm=[1, 0]), name="size")
        return mb.relu(x=more), mb.cast(x=size, dtype="fp32")

    return made


def origins(block: Block) -> dict[str, list[str]]:
    return {
        op.name: sorted(source.name for source in op.outputs[0].nonreplaceable_vars_upstream)
        for op in block.operations
    }


def test_constant_expressions_that_variables_come_from_are_coremltools_own() -> None:
    made = program()
    block = made.functions["main"]
    block._propagate_nonreplaceable_vars()
    wanted = origins(block)
    for op in block.operations:
        op.outputs[0].nonreplaceable_vars_upstream = set()
    propagate(block)
    assert origins(block) == wanted
    assert ["one", "other"] in wanted.values()
    assert wanted["size"] == []


def test_shared_sets_are_never_changed() -> None:
    """Passes replace variables, and so change what others come from, but for those that stay."""
    with unhurried():
        made = program()
        block = made.functions["main"]
        before = origins(block)
        first = next(op for op in block.operations if op.name == "first")
        with block:
            fresh = mb.slice_by_size(
                x=first.inputs["x"], begin=[0, 0], size=[3, 2], before_op=first
            )
            block.replace_uses_of_var_after_op(
                anchor_op=first, old_var=first.outputs[0], new_var=fresh, force_replace=True
            )
    after = origins(block)
    assert before["both"] == ["one", "other"]
    assert after["both"] == ["other"]
    assert after["first"] == ["one"]


def test_constant_expressions_are_found_again_only_where_something_has_changed(monkeypatch) -> None:
    walks = []
    monkeypatch.setattr(pipelines, "propagate", lambda block: walks.append(block.name))
    with unhurried():
        block = program().functions["main"]
        walks.clear()
        for _ in range(3):
            with block:
                pass
        assert walks == []
        first = next(op for op in block.operations if op.name == "first")
        with block:
            first.set_inputs(weight=first.inputs["weight"])
        assert len(walks) == 1
        with block:
            mb.relu(x=first.outputs[0])
        assert len(walks) == 2


def test_kinds_of_types_are_told_as_ever() -> None:
    kinds = [types.fp32, types.int32, types.str, types.bool, types.tensor(types.fp16, (2, 3)), None]
    kinds += [types.list(types.fp32), types.state(types.tensor(types.fp16, (2,))), "no type"]
    asked = (types.is_tensor, types.is_str)
    wanted = [[ask(kind) for kind in kinds] for ask in asked]
    with unhurried():
        for _ in range(2):
            assert [[ask(kind) for kind in kinds] for ask in asked] == wanted
    assert wanted[0].count(True) == wanted[1].count(True) == 1


class Spoils(AbstractGraphPass):
    """Leave a variable without the operation that reads it."""

    def apply(self, prog: Program) -> None:
        for op in prog.functions["main"].operations:
            if op.op_type == "concat":
                op.outputs[0]._child_ops.clear()


class Counts(AbstractGraphPass):
    """Count the checks of a program as a whole until this pass."""

    def __init__(self, checks: list[str], seen: list[int]) -> None:
        super().__init__()
        self.checks, self.seen = checks, seen

    def apply(self, prog: Program) -> None:
        self.seen.append(len(self.checks))


@pytest.fixture
def passes(monkeypatch):
    known = dict(pass_registry.PASS_REGISTRY.passes)
    monkeypatch.setattr(pass_registry.PASS_REGISTRY, "passes", known)
    return known


def test_a_program_that_a_pass_spoils_is_found_at_the_end(passes) -> None:
    passes["tests::spoils"] = Spoils()
    with unhurried(), pytest.raises(Exception, match="should be consumed"):
        PassPipelineManager.apply_pipeline(program(), PassPipeline(["tests::spoils"]))


def test_programs_are_checked_as_they_enter_and_as_they_leave(passes, monkeypatch) -> None:
    checks: list[str] = []
    whole = Block._check_vars_visibility_in_block

    def counted(block, *arguments, **named):
        checks.append(block.name)
        return whole(block, *arguments, **named)

    monkeypatch.setattr(Block, "_check_vars_visibility_in_block", counted)
    seen: list[int] = []
    for number in range(4):
        passes[f"tests::{number}"] = Counts(checks, seen)
    pipeline = PassPipeline([f"tests::{number}" for number in range(4)])
    with unhurried():
        PassPipelineManager.apply_pipeline(program(), pipeline)
    assert seen[0] == seen[3] > 0
    assert len(checks) > seen[3]
    seen.clear()
    PassPipelineManager.apply_pipeline(program(), pipeline)
    assert seen[0] < seen[3], "outside, coremltools checks after each pass"


def test_all_is_put_back() -> None:
    before = (Program.validate, Program.__str__, PassPipelineManager.apply_pipeline)
    with unhurried():
        assert str(program()) == ""
    with pytest.raises(KeyError), unhurried():
        raise KeyError
    assert before == (Program.validate, Program.__str__, PassPipelineManager.apply_pipeline)
    assert "linear" in str(program())
