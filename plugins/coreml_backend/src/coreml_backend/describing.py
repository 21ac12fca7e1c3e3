"""Names, images and shapes: what users see of a package in Xcode and in their code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import coremltools as ct
from coremltools.converters.mil.frontend.torch.utils import TORCH_DTYPE_TO_MIL_DTYPE
from torch.export import ExportedProgram

from coreml_backend_hooks import CoreMLOptions
from export_rewrites import Interface
from palette_core.errors import BackendError


def input_types(
    program: ExportedProgram, face: Interface, options: CoreMLOptions
) -> dict[str, Any]:
    """Return what ``coremltools.convert`` needs to be told of inputs: images, lists of shapes.

    Raises:
        BackendError: an image or a list of shapes is of no input of the program, an image has no
            fixed shape, or a shape is one that the program does not take.
    """
    if not options.image_inputs and not options.enumerated_shapes:
        return {}
    names = list(program.graph_signature.user_inputs)
    called = {each.name: each.node for each in face.inputs if each.name}
    images = {called.get(name, name): image for name, image in options.image_inputs.items()}
    shapes = {called.get(name, name): each for name, each in options.enumerated_shapes.items()}
    _check_known("image_inputs", list(images), names)
    _check_known("enumerated_shapes", list(shapes), names)
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.name in names}
    types = []
    for name in names:
        value = values[name]
        if name in images:
            if name in shapes or not all(isinstance(size, int) for size in value.shape):
                raise BackendError(
                    f"image_inputs: {name!r} has a dynamic size; images have fixed ones"
                )
            types.append(ct.ImageType(name, tuple(value.shape), **images[name].model_dump()))
            continue
        listed = None
        if name in shapes:
            _check_shapes(name, shapes[name], _bounds(program, value))
            listed = ct.EnumeratedShapes(shapes[name], default=shapes[name][0])
        # With a type, for coremltools makes float16 of what has none, token ids too.
        types.append(ct.TensorType(name, listed, TORCH_DTYPE_TO_MIL_DTYPE[value.dtype]))
    return {"inputs": types}


def renamed(package: Any, face: Interface) -> Any:
    """Return a package with the names that an interface gives.

    Raises:
        BackendError: coremltools has made other features of the program.
    """
    spec = package.get_spec()
    changed = False
    for kind, features in (
        ("input", face.inputs), ("output", face.outputs), ("state", face.states),
    ):  # fmt: skip
        have = [feature.name for feature in getattr(spec.description, kind)]
        wanted = [(at, each.name) for at, each in enumerate(features) if each.name]
        if wanted and len(have) != len(features):
            raise BackendError(
                f"{kind}_names: coremltools has made {have} of {[each.key for each in features]}"
            )
        # In two steps, so that names can be exchanged.
        for at, _ in wanted:
            _rename(spec, kind, have[at], f"palette_core_{kind}_{at}")
        for at, new in wanted:
            _rename(spec, kind, f"palette_core_{kind}_{at}", new)
        changed |= bool(wanted)
    if not changed:
        return package
    return ct.models.MLModel(spec, weights_dir=package.weights_dir, skip_model_load=True)


def _rename(spec: Any, kind: str, old: str, new: str) -> None:
    if kind != "state":
        ct.utils.rename_feature(spec, old, new, kind == "input", kind == "output")
        return
    for feature in spec.description.state:
        if feature.name == old:
            feature.name = new
    for function in spec.mlProgram.functions.values():
        for item in function.inputs:
            if item.name == old:
                item.name = new
        for block in function.block_specializations.values():
            for op in block.operations:
                for argument in op.inputs.values():
                    for binding in argument.arguments:
                        if binding.name == old:
                            binding.name = new


def _bounds(program: ExportedProgram, value: Any) -> list[tuple[int, int]]:
    """Return the least and the largest size of each axis of an input."""
    found = []
    for size in value.shape:
        if isinstance(size, int):
            found.append((size, size))
        else:
            allowed = program.range_constraints[size.node.expr]
            found.append((int(allowed.lower), int(allowed.upper)))
    return found


def _check_shapes(
    name: str, shapes: Sequence[tuple[int, ...]], bounds: Sequence[tuple[int, int]]
) -> None:
    if len(set(shapes)) < max(2, len(shapes)):
        raise BackendError(
            f"enumerated_shapes: {name!r} has {[list(shape) for shape in shapes]}; give two shapes "
            "or more, no two alike"
        )
    for shape in shapes:
        if len(shape) != len(bounds):
            raise BackendError(
                f"enumerated_shapes: {name!r} has {len(bounds)} axes, and not as {list(shape)}"
            )
        for axis, (size, (least, most)) in enumerate(zip(shape, bounds, strict=True)):
            if not least <= size <= most:
                raise BackendError(
                    f"enumerated_shapes: axis {axis} of {name!r} is "
                    f"{least if least == most else f'{least} to {most}'}, and not {size} as in "
                    f"{list(shape)}; dynamic_shapes says which axes vary, and between which sizes"
                )


def _check_known(option: str, given: Sequence[str], names: Sequence[str]) -> None:
    unknown = [name for name in given if name not in names]
    if unknown:
        raise BackendError(f"{option}: no input is called {unknown[0]!r}; there are {list(names)}")
