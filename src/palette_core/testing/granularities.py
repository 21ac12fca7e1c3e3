"""Checks of granularities. What a block is, the core's layout makes of the answer."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    load_checkpoint,
)
from palette_core.errors import IncompatibleShapeError
from palette_core.plugins import Granularity
from palette_core.plugins.kinds import GRANULARITY
from palette_core.tensors.layout import BlockLayout, Shape
from palette_core.testing._kit import Subject, check, demand, fail, import_tool
from palette_core.testing._probes import bits, draw

_KIND = GRANULARITY
_EXTENTS = (1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 24, 32, 64)
_MOST = 1 << 14  # elements of a weight that is cut
_EXAMPLES = 60
_FITTING = ((64, 64), (64, 32, 3, 3), (32, 48, 4), (24, 36), (64,))

Each = Callable[[Any, Shape, int], None]


def _for_shapes(subject: Subject, each: Each) -> None:
    """Call ``each`` with granularities, and shapes and axes that hypothesis draws."""
    hypothesis, st = import_tool("hypothesis"), import_tool("hypothesis.strategies")
    # Half of the shapes are such that most block sizes divide them.
    fitting = st.sampled_from(_FITTING)
    shapes = fitting | st.lists(st.sampled_from(_EXTENTS), min_size=1, max_size=5).map(tuple)
    shapes = shapes.filter(lambda shape: math.prod(shape) <= _MOST * 2)

    @hypothesis.settings(  # type: ignore[untyped-decorator]
        max_examples=_EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(  # type: ignore[untyped-decorator]
        granularity=st.sampled_from(subject.options), shape=shapes, axis=st.integers(0, 1)
    )
    def run(granularity: Any, shape: Shape, axis: int) -> None:
        each(granularity, shape, min(axis, len(shape) - 1))

    run()


def _cut(granularity: Granularity, shape: Shape, axis: int) -> BlockLayout | None:
    """Return the layout of the core, or None where the granularity refuses the shape."""
    try:
        block = granularity.block_shape(shape, axis)
    except IncompatibleShapeError:
        return None
    return BlockLayout(shape, tuple(block), 1, axis)


@check(_KIND)
def block_shape(subject: Subject) -> None:
    """For a shape that fits, as many positive integers as axes, each dividing its extent."""
    accepted: list[Shape] = []

    def each(granularity: Any, shape: Shape, axis: int) -> None:
        try:
            block = granularity.block_shape(shape, axis)
        except Exception:
            return  # another check is about what is raised
        held = (
            isinstance(block, tuple)
            and len(block) == len(shape)
            and all(
                type(b) is int and b > 0 and s % b == 0 for s, b in zip(shape, block, strict=True)
            )
        )
        demand(subject, held, f"{granularity!r} cuts shape {shape} into {block!r}")
        accepted.append(shape)

    _for_shapes(subject, each)
    demand(subject, accepted, f"no shape fits; tried were {', '.join(map(str, _FITTING))} and more")


@check(_KIND)
def exact_trip(subject: Subject) -> None:
    """Every element is in exactly one block: cut and put together, a weight is the same bitwise."""

    def each(granularity: Any, shape: Shape, axis: int) -> None:
        layout = _cut(granularity, shape, axis)
        if layout is None:
            return
        weight = draw(*shape)
        again = layout.merge(layout.split(weight))
        demand(subject, bits(again) == bits(weight), f"{granularity!r} loses parts of {shape}")
        numbers = layout.split(torch.arange(math.prod(shape)).reshape(shape))
        times = numbers.flatten().bincount(minlength=math.prod(shape))
        demand(subject, bool((times == 1).all()), f"{granularity!r} has blocks that overlap")

    _for_shapes(subject, each)


@check(_KIND)
def refusal(subject: Subject) -> None:
    """A shape that does not fit raises IncompatibleShapeError, naming the shape and the axis."""

    def each(granularity: Any, shape: Shape, axis: int) -> None:
        try:
            granularity.block_shape(shape, axis)
        except IncompatibleShapeError as error:
            named = str(shape) in str(error) and "axis" in str(error)
            text = f"the message for {shape} names not both shape and axis: {error}"
            demand(subject, named, text)
        except Exception as error:
            fail(subject, f"{granularity!r} raises {type(error).__name__} for {shape}: {error}")

    _for_shapes(subject, each)


@check(_KIND)
def pure(subject: Subject) -> None:
    """The answer depends on the shape, the axis and the options, and on nothing else."""

    def each(granularity: Any, shape: Shape, axis: int) -> None:
        equal = type(granularity).model_validate(granularity.model_dump())
        answers = []
        for one in (granularity, granularity, equal):
            try:
                answers.append(one.block_shape(shape, axis))
            except IncompatibleShapeError as error:
                answers.append(str(error))
        same = answers[0] == answers[1] == answers[2]
        demand(subject, same, f"{granularity!r} answers {shape} by {answers}")

    _for_shapes(subject, each)


@check(_KIND)
def whole_trip(subject: Subject) -> None:
    """Picked in a spec it palettizes block by block, and survives finalizing and a checkpoint."""
    for granularity in subject.options:
        dense = nn.Sequential(nn.Linear(64, 64), nn.Conv2d(1, 64, (3, 3))).eval()
        shapes = [(64, 64), (64, 1, 3, 3)]
        layouts = [_cut(granularity, shape, 0) for shape in shapes]  # type: ignore[arg-type]
        names = [str(i) for i, layout in enumerate(layouts) if layout is not None]
        if not names:
            continue  # whether any shape fits is another check's business
        spec = PalettizationSpec(n_bits=1, granularity=granularity.model_dump())
        config = KMeansPalettizerConfig(
            global_config=None,
            module_name_configs={
                name: ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec}) for name in names
            },
        )
        _trip(subject, dense, config, {n: layouts[int(n)] for n in names})


def _layer(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name)


def _trip(
    subject: Subject,
    dense: nn.Sequential,
    config: KMeansPalettizerConfig,
    layouts: dict[str, BlockLayout | None],
) -> None:
    inputs = (draw(1, 1, 64, 64),)
    palettizer = KMeansPalettizer(dense, config)
    model = palettizer.prepare(inputs)
    wanted = model(*inputs)
    for name, layout in layouts.items():
        assert layout is not None
        weight = _layer(model, name).weight
        for block in layout.split(weight.detach()):
            values = len(block.unique())
            demand(subject, values <= 2, f"a block of layer {name} has {values} values, not 2")
    with tempfile.TemporaryDirectory() as folder:
        path = palettizer.export(Path(folder, "model.safetensors"), inputs, backend="packed")
        demand(subject, torch.equal(model(*inputs), wanted), "finalizing changed the outputs")
        fresh = nn.Sequential(nn.Linear(64, 64), nn.Conv2d(1, 64, (3, 3))).eval()
        loaded = load_checkpoint(path, fresh)
        same = torch.equal(loaded(*inputs), wanted)
        demand(subject, same, "the checkpoint does not decode to the same weights")
