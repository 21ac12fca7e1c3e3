"""Shapes and memory of inputs, outputs and states that a converted program is fixed to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from coreai_backend.options import CoreAIOptions
from export_rewrites import Interface, summary
from palette_core.errors import BackendError, did_you_mean

if TYPE_CHECKING:
    from coreai.authoring import AIProgram
    from torch.export import ExportedProgram

_SHAPES, _LAYOUTS = "static_shapes", "hardware_constraints"


@dataclass(frozen=True)
class _Function:
    """A function as its file shows it: example tensors, with symbols for sizes that vary."""

    inputs: Mapping[str, Tensor]
    states: Mapping[str, Tensor]
    features: Mapping[str, Tensor]
    program: ExportedProgram


class Layouts:
    """Layouts that options ask for, checked against the functions of a file."""

    def __init__(
        self,
        options: CoreAIOptions,
        programs: Mapping[str, ExportedProgram],
        faces: Mapping[str, Interface],
    ) -> None:
        """Check them, before anything is converted.

        Raises:
            BackendError: a function, an input or an output that is named is not there, or a shape
                or a layout does not fit it; with option and name.
        """
        self._shapes = options.static_shapes
        self._layouts = options.hardware_constraints
        functions = {name: _function(programs[name], face) for name, face in faces.items()}
        made: dict[str, _Function] = dict(functions)
        for name, sets in self._shapes.items():
            given = _known(_SHAPES, "function", name, functions)
            made.pop(name)
            for suffix, shapes in sets.items():
                where = f"{_SHAPES}: {name}.{suffix}"
                if f"{name}_{suffix}" in made or f"{name}_{suffix}" in functions:
                    raise BackendError(f"{where}: there is a function {name}_{suffix!s} already")
                _check_shapes(where, shapes, given)
                made[f"{name}_{suffix}"] = given
        for name, layouts in self._layouts.items():
            given = _known(_LAYOUTS, "function", name, made)
            for feature, layout in layouts.items():
                where = f"{_LAYOUTS}: {name}"
                rank = _known(where, "input, output or state", feature, given.features).ndim
                spaced = {*layout.alignments, *layout.interleave} != {1}
                if spaced and feature in given.states:
                    raise BackendError(
                        f"{where}.{feature} is a state; Core AI's runtime gives states that are "
                        "aligned or interleaved values that nobody wrote (on Linux, coreai-core "
                        "1.0.0b3), so leave all of both at 1"
                    )
                for field, axes in (("alignments", rank + 1), ("interleave", rank)):
                    have = len(getattr(layout, field))
                    if have != axes:
                        raise BackendError(
                            f"{where}.{feature}.{field} has {have} numbers, and a tensor of {rank} "
                            f"axes takes {axes}"
                        )

    def apply(self, program: AIProgram) -> None:
        """Fix shapes, then memory, of a program that has the functions.

        Raises:
            BackendError: Core AI's compiler refuses them.
        """
        from coreai.authoring.constraints import AllocationType, HardwareConstraints

        for name, sets in self._shapes.items():
            with _blamed(f"{_SHAPES}: {name}"):
                program.set_static_shape_config(
                    name, {suffix: dict(shapes) for suffix, shapes in sets.items()}
                )
        for name, layouts in self._layouts.items():
            with _blamed(f"{_LAYOUTS}: {name}"):
                program.set_hardware_constraints(
                    name,
                    {
                        feature: HardwareConstraints(
                            AllocationType[each.allocation], each.alignments, each.interleave
                        )
                        for feature, each in layouts.items()
                    },
                )


@contextlib.contextmanager
def _blamed(where: str) -> Iterator[None]:
    """Turn what the compiler raises, of any kind, into an error of ours."""
    try:
        yield
    except Exception as error:
        raise BackendError(f"{where}: Core AI refuses it: {summary(error)}") from error


def _function(program: ExportedProgram, face: Interface) -> _Function:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    # Where no output has a name, the converter makes some up.
    outputs = face.outputs if any(each.name for each in face.outputs) else ()
    parts = {
        kind: {
            each.name or each.node: values[each.node]
            for each in features
            if isinstance(values.get(each.node), Tensor)
        }
        for kind, features in (
            ("inputs", face.inputs), ("outputs", outputs), ("states", face.states)
        )
    }  # fmt: skip
    return _Function(
        {**parts["states"], **parts["inputs"]},
        parts["states"],
        {**parts["outputs"], **parts["states"], **parts["inputs"]},
        program,
    )


def _known(where: str, what: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        raise BackendError(
            f"{where}: no {what} is called {name!r}{did_you_mean(name, known)}; there are "
            f"{', '.join(known)}"
        )
    return known[name]


def _check_shapes(where: str, shapes: Mapping[str, tuple[int, ...]], given: _Function) -> None:
    """Refuse shapes that a function does not take, each alone or all together."""
    sizes: dict[Any, int] = {}
    axes = []
    for name, shape in shapes.items():
        value = _known(where, "input or state", name, given.inputs)
        if len(shape) != value.ndim:
            raise BackendError(
                f"{where}.{name} is {list(shape)}, and {name!r} has {value.ndim} axes"
            )
        for axis, (size, dim) in enumerate(zip(shape, value.shape, strict=True)):
            expression: Any = dim if isinstance(dim, int) else dim.node.expr
            axes.append((name, axis, size, expression))
            if getattr(expression, "is_Symbol", False):
                sizes.setdefault(expression, size)
    for name, axis, size, expression in axes:
        allowed = given.program.range_constraints.get(expression)
        if allowed is not None and not (allowed.lower <= size <= allowed.upper):
            raise BackendError(
                f"{where}.{name}: axis {axis} is {allowed.lower} to {allowed.upper}, and not "
                f"{size}; dynamic_shapes says between which sizes it varies"
            )
        right = expression if isinstance(expression, int) else expression.subs(sizes)
        if getattr(right, "is_number", True) and int(right) != size:
            fixed = isinstance(expression, int)
            raise BackendError(
                f"{where}.{name}: axis {axis} is {int(right)}"
                f"{'' if fixed else ' by the other sizes'}, and not {size}"
                f"{'; dynamic_shapes says which axes vary' if fixed else ''}"
            )
