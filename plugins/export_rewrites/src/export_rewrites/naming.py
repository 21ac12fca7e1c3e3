"""Names of a program's inputs, outputs and states, and those that users give them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.utils._pytree import MappingKey, TreeSpec, tree_flatten_with_path, tree_unflatten

from palette_core.errors import BackendError, did_you_mean
from palette_core.plugins import ExportRequest, Names

OUTPUT_KEYS = "export_rewrites_output_keys"
_KINDS = {"inputs": "input_names", "outputs": "output_names", "states": "state_names"}


@dataclass(frozen=True)
class Feature:
    """An input, an output or a state of a program.

    Attributes:
        node: the node that stands for it.
        key: what the model calls it: the argument, the key of the dictionary that is returned
            (empty where there is none), the buffer's name.
        name: what the file is to call it, or None.
    """

    node: str
    key: str
    name: str | None = None


@dataclass(frozen=True)
class Interface:
    """Interface of a program, each part in the program's order.

    Attributes:
        inputs: those that the program does not write to.
        outputs: those that the model returns.
        states: buffers that the model writes to, then inputs that it writes to.
    """

    inputs: tuple[Feature, ...] = ()
    outputs: tuple[Feature, ...] = ()
    states: tuple[Feature, ...] = ()


def named(programs: Mapping[str, ExportedProgram], request: ExportRequest) -> dict[str, Interface]:
    """Return the interface of each function, with the names that a request gives.

    Args:
        programs: by function, as `tidy_outputs` leaves them.
        request: of the same functions.

    Raises:
        BackendError: a name is of nothing in the program, there are too many or too few, or two
            are alike; with those that there are.
    """
    made = {name: interface_of(program) for name, program in programs.items()}
    for part, kind in _KINDS.items():
        common: Names | None = getattr(request, kind)
        keys = {key: None for face in made.values() for key in _keys(getattr(face, part))}
        if isinstance(common, Mapping):
            _check_known(kind, common, list(keys))
        for function, face in made.items():
            own = getattr(request.functions[function], kind)
            where = f"{kind} of function {function!r}" if len(made) > 1 else kind
            found = getattr(face, part)
            if isinstance(own, Mapping):
                _check_known(where, own, _keys(found))
            chosen = _chosen(where, own if own is not None else common, found)
            made[function] = replace(face, **{part: chosen})
    for function, face in made.items():
        _check_different(function, face)
    return made


def interface_of(program: ExportedProgram) -> Interface:
    """Return the interface of a program, which no names are given yet."""
    signature = program.graph_signature
    buffers, mutated = signature.inputs_to_buffers, set(signature.buffers_to_mutate.values())
    written = set(signature.user_inputs_to_mutate.values())
    users = set(signature.user_inputs)
    inputs: list[Feature] = []
    states: list[Feature] = []
    late: list[Feature] = []
    for node in program.graph.find_nodes(op="placeholder"):
        if buffers.get(node.name) in mutated:
            states.append(Feature(node.name, buffers[node.name]))
        elif node.name in users:
            (late if node.name in written else inputs).append(Feature(node.name, node.name))
    (output,) = program.graph.find_nodes(op="output")
    keys = iter(output.meta.get(OUTPUT_KEYS) or keys_of_outputs(program))
    outputs = [
        Feature(node.name if isinstance(node, fx.Node) else "", next(keys, ""))
        for spec, node in zip(signature.output_specs, output.args[0], strict=True)
        if spec.kind is OutputKind.USER_OUTPUT
    ]
    return Interface(tuple(inputs), tuple(outputs), tuple(states + late))


def keys_of_outputs(program: ExportedProgram) -> list[str]:
    """Return the key of each output that is not None: empty outside of dictionaries."""
    spec = program.call_spec.out_spec
    if spec is None:
        return []
    keys = [_key(path) for path in output_paths(spec)]
    (output,) = program.graph.find_nodes(op="output")
    given = [
        value
        for each, value in zip(program.graph_signature.output_specs, output.args[0], strict=True)
        if each.kind is OutputKind.USER_OUTPUT
    ]
    if len(given) != len(keys):
        return []
    return [key for key, value in zip(keys, given, strict=True) if value is not None]


def output_paths(spec: TreeSpec) -> list[tuple[Any, ...]]:
    """Return the path of each leaf of what ``forward`` returns."""
    tree = tree_unflatten(list(range(spec.num_leaves)), spec)
    try:
        return [path for path, _ in tree_flatten_with_path(tree)[0]]
    except ValueError:  # diffusers registers its classes without what tells names
        return [*_paths(spec)]


def _paths(spec: TreeSpec, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where each leaf is, by the names that containers keep as their context."""
    if spec.is_leaf():
        yield path
        return
    parts, context = spec.children(), spec.context
    named = isinstance(context, (list, tuple)) and len(context) == len(parts)
    for key, part in zip(context if named else range(len(parts)), parts, strict=True):
        yield from _paths(part, (*path, MappingKey(key)))


def _key(path: Sequence[Any]) -> str:
    """Return keys of dictionaries along a path, joined; empty for anything else."""
    if not all(isinstance(step, MappingKey) for step in path):
        return ""
    return ".".join(str(step.key) for step in path)


def _keys(features: Sequence[Feature]) -> list[str]:
    return [feature.key for feature in features if feature.key]


def _check_known(where: str, names: Mapping[str, str], known: Sequence[str]) -> None:
    for key in names:
        if key not in known:
            there = f"there are {', '.join(known)}" if known else "there are none with names"
            raise BackendError(f"{where}: {key!r} is not known{did_you_mean(key, known)}; {there}")


def _chosen(where: str, names: Names | None, features: Sequence[Feature]) -> tuple[Feature, ...]:
    if names is None:
        return tuple(features)
    if isinstance(names, Mapping):
        return tuple(replace(each, name=names.get(each.key)) for each in features)
    if len(names) != len(features):
        of = [feature.key or feature.node for feature in features]
        raise BackendError(
            f"{where}: {len(names)} names, {list(names)}, for {len(features)}, {of}; give one for "
            "each in this order, or some as {what it is called: name}"
        )
    return tuple(replace(each, name=name) for each, name in zip(features, names, strict=True))


def _check_different(function: str, face: Interface) -> None:
    """Refuse names that are given twice in a function, whatever they are of."""
    seen: dict[str, str] = {}
    for part in fields(face):
        for feature in getattr(face, part.name):
            name = feature.name
            if name is None and part.name != "outputs":
                name = feature.node
            if name is None:
                continue
            what = f"{part.name[:-1]} {feature.key or feature.node!r}"
            if name in seen:
                raise BackendError(
                    f"function {function!r}: {seen[name]} and {what} would both be called "
                    f"{name!r}; no two names may be alike"
                )
            seen[name] = what
