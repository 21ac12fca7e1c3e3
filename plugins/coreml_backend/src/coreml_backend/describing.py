"""Names, images and shapes: what users see of a package in Xcode and in their code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil.frontend.torch.utils import TORCH_DTYPE_TO_MIL_DTYPE
from torch import Tensor
from torch.export import ExportedProgram

from coreml_backend_hooks import CoreMLOptions
from export_rewrites import Feature, Interface
from palette_core.errors import BackendError

_LAYOUTS = {
    "RGB": ct.colorlayout.RGB,
    "BGR": ct.colorlayout.BGR,
    "G": ct.colorlayout.GRAYSCALE,
    "G16": ct.colorlayout.GRAYSCALE_FLOAT16,
}


def check_features(
    programs: Mapping[str, ExportedProgram],
    faces: Mapping[str, Interface],
    options: CoreMLOptions,
) -> None:
    """Refuse options about inputs and outputs that no function has, before anything is converted.

    Raises:
        BackendError: naming option and input or output, with those that there are.
    """
    inputs = [name for face in faces.values() for name in _by_name(face.inputs)]
    outputs = [name for face in faces.values() for name in _by_name(face.outputs)]
    for option in ("image_inputs", "enumerated_shapes", "input_dtypes"):
        _check_known(option, list(getattr(options, option)), "input", inputs)
    for option in ("image_outputs", "output_dtypes"):
        _check_known(option, list(getattr(options, option)), "output", outputs)
    for what in ("input", "output"):
        dtypes, images = getattr(options, f"{what}_dtypes"), getattr(options, f"image_{what}s")
        twice = [name for name in dtypes if name in images]
        if twice:
            raise BackendError(
                f"{what}_dtypes: {twice[0]!r} is an image, of image_{what}s; choose one"
            )
    for name, program in programs.items():
        _dtypes(program, faces[name].inputs, "input", options.input_dtypes)
        _dtypes(program, faces[name].outputs, "output", options.output_dtypes)
        _images(program, faces[name], options)


def types(program: ExportedProgram, face: Interface, options: CoreMLOptions) -> dict[str, Any]:
    """Return what ``coremltools.convert`` is told of inputs and outputs: images, shapes, dtypes.

    Options about what the program does not have are about other functions.

    Raises:
        BackendError: an image has no fixed shape, a shape is one that the program does not take,
            or a dtype is none that the values can have.
    """
    made: dict[str, Any] = {}
    if options.image_inputs or options.enumerated_shapes or options.input_dtypes:
        made["inputs"] = _input_types(program, face, options)
    dtypes = _dtypes(program, face.outputs, "output", options.output_dtypes)
    images = _images(program, face, options)
    if dtypes or images:
        made["outputs"] = [
            images.get(each.node, ct.TensorType(dtype=dtypes.get(each.node)))
            for each in face.outputs
        ]
    return made


def _images(
    program: ExportedProgram, face: Interface, options: CoreMLOptions
) -> dict[str, ct.ImageType]:
    """Return images among the outputs of a program, by node.

    Raises:
        BackendError: one has other axes than an image of its colors, or a dynamic size.
    """
    nodes = _by_name(face.outputs)
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    made: dict[str, ct.ImageType] = {}
    for name, layout in options.image_outputs.items():
        if name not in nodes:
            continue
        shape = list(getattr(values.get(nodes[name]), "shape", ()))
        colors = 3 if layout in ("RGB", "BGR") else 1
        fits = len(shape) == 4 and shape[:2] == [1, colors]
        if not fits or not all(isinstance(size, int) for size in shape):
            raise BackendError(
                f"image_outputs: {name!r} is {[str(size) for size in shape]}, and an image of "
                f"{layout} is [1, {colors}, height, width], of a fixed size"
            )
        made[nodes[name]] = ct.ImageType(color_layout=_LAYOUTS[layout])
    return made


def _input_types(program: ExportedProgram, face: Interface, options: CoreMLOptions) -> list[Any]:
    names = list(program.graph_signature.user_inputs)
    nodes = _by_name(face.inputs)
    images = {nodes.get(name): image for name, image in options.image_inputs.items()}
    shapes = {nodes.get(name): each for name, each in options.enumerated_shapes.items()}
    dtypes = _dtypes(program, face.inputs, "input", options.input_dtypes)
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.name in names}
    types: list[Any] = []
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
        dtype = dtypes.get(name, TORCH_DTYPE_TO_MIL_DTYPE[value.dtype])
        types.append(ct.TensorType(name, listed, dtype))
    return types


def _by_name(features: Sequence[Feature]) -> dict[str, str]:
    """Return nodes by what users may call them: the name in the file, else key and node."""
    found: dict[str, str] = {}
    for each in features:
        for name in (each.name,) if each.name else (each.key, each.node):
            if name:
                found.setdefault(name, each.node)
    return found


def _dtypes(
    program: ExportedProgram, features: Sequence[Feature], what: str, asked: Mapping[str, str]
) -> dict[str, Any]:
    """Return numpy's dtypes by node, of those that a program has."""
    nodes = _by_name(features)
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    made: dict[str, Any] = {}
    for name, dtype in asked.items():
        if name not in nodes:
            continue
        value = values.get(nodes[name])
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            raise BackendError(
                f"{what}_dtypes: {what} {name!r} holds no floats, and cannot be {dtype}; "
                "what holds integers is int32 in the package"
            )
        made[nodes[name]] = np.dtype(dtype).type
    return made


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


def _check_known(option: str, given: Sequence[str], what: str, names: Sequence[str]) -> None:
    unknown = [name for name in given if name not in names]
    if unknown:
        raise BackendError(
            f"{option}: no {what} is called {unknown[0]!r}; there are {list(dict.fromkeys(names))}"
        )
