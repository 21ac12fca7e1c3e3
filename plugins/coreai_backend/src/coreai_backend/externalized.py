"""Modules that become graphs of their own in a file, called where the model calls them.

coreai-torch puts an operator in the place of such a module, and exports the module by itself, in
torch's own decompositions. What its converter then takes is rewritten here first, as all else is,
and palettized weights are looked up in it as everywhere. It offers no public way to do that: what
of it is private is called in this module alone (coreai-torch 0.4.3, ``externalize.py``).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from coreai_backend.ir import quiet
from coreai_backend.options import CoreAIOptions
from export_rewrites import summary
from palette_core.errors import BackendError, did_you_mean

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_SHOWN = 8
Rewrite = Callable[["ExportedProgram"], "ExportedProgram"]


@dataclass(frozen=True)
class Inner:
    """A call of a module that has a graph of its own.

    Attributes:
        path: name of the module in the function's.
        program: rewritten.
        record: of it, as coreai-torch's converter takes it.
    """

    path: str
    program: ExportedProgram
    record: Any


@dataclass(frozen=True)
class Exported:
    """A function to be converted: its program, and those of its modules that have their own."""

    program: ExportedProgram
    inner: Sequence[Inner] = ()


def exported(
    name: str,
    model: nn.Module,
    options: CoreAIOptions,
    export: Callable[[], ExportedProgram],
    rewrite: Rewrite,
) -> Exported:
    """Return a program in which the modules that options name are calls, and their programs.

    Args:
        name: of the function; names of graphs begin with it.
        model: what ``export`` traces; it is left as it was.
        options: with ``externalize`` and ``composites``.
        export: exports and rewrites the model.
        rewrite: rewrites the program of a module.

    Raises:
        BackendError: a name is of no module, no call of it is traced, it takes or returns anything
            but tensors, or it uses a state; naming it.
    """
    wanted = _chosen(model, options)
    if not wanted:
        return Exported(export())
    with quiet():
        from coreai_torch import externalize
    with _marked(model, wanted, externalize) as suffix:
        program = _without(suffix, export())
        calls = externalize._PreparedModules(model, program)
        inner = []
        try:
            with quiet():
                for call in calls:
                    inner.append(_inner(call, externalize, rewrite, suffix))
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(f"{_at(wanted)}: {_cannot(error)}") from error
    _check_called(wanted, inner)
    _name(name, inner)
    for each in inner:
        _check_states(program, each)
    return Exported(program, inner)


def _chosen(model: nn.Module, options: CoreAIOptions) -> dict[str, Any]:
    """Return composites, or None, by name of the module."""
    asked: dict[str, Any] = {**dict.fromkeys(options.externalize), **options.composites}
    modules = {name: module for name, module in model.named_modules() if name}
    kinds = {
        name: type_before_parametrizations(module).__name__ for name, module in modules.items()
    }
    found: dict[str, Any] = {}
    for text, composite in asked.items():
        names = [name for name in modules if text in (name, kinds[name])]
        if not names:
            known = {*modules, *kinds.values()}
            shown = ", ".join(list(modules)[:_SHOWN])
            raise BackendError(
                f"externalize: no module of the model, nor class of one, is called {text!r}"
                f"{did_you_mean(text, known)}; there are {shown}"
                f"{' and more' if len(modules) > _SHOWN else ''}"
            )
        found |= dict.fromkeys(names, composite)
    return found


@contextlib.contextmanager
def _marked(model: nn.Module, wanted: dict[str, Any], externalize: Any) -> Iterator[str]:
    """Put operators in the place of modules, and take them away again.

    Yields:
        what their names end in.
    """
    modules = {name: model.get_submodule(name) for name in wanted}
    own = {name: vars(module).get("forward") for name, module in modules.items()}
    suffix = uuid4().hex[:8]
    try:
        for name, module in modules.items():
            composite = wanted[name]
            _check_attributes(name, module, composite)
            try:
                _put_operator(name, module, suffix, externalize)
            except Exception as error:
                raise BackendError(f"externalize: {name}: {_cannot(error)}") from error
            module._externalize_config = externalize.ExternalizeSpec(
                type(module),
                None if composite is None else composite.operation,
                None if composite is None else list(composite.attributes),
            )
        yield suffix
    finally:
        externalize._restore_externalized(externalize._find_marked_submodules(model))
        for name, module in modules.items():
            vars(module).pop("forward", None)
            if own[name] is not None:
                vars(module)["forward"] = own[name]


def _put_operator(name: str, module: nn.Module, suffix: str, externalize: Any) -> None:
    """Call an operator in the place of a module, marked as coreai-torch marks it.

    Its own marking, ``_prepare_module``, takes no names that begin with a digit, as those in an
    ``nn.Sequential`` do.
    """
    forward = _annotated(module.forward)
    own = f"at_{externalize._sanitize_op_name(name)}_{suffix}"
    # Of the process, and never taken back; the suffix keeps names apart.
    operator = torch.library.custom_op(
        f"{externalize._EXTERNALIZE_NAMESPACE}::{own}", forward, mutates_args=()
    )
    operator.register_fake(forward)
    marks = {"_original_forward": forward, "_externalize_name": name, "_externalize_op_name": own}
    vars(module).update(marks, forward=operator)


def _annotated(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method whose parameters and result are said to be tensors where nothing is said."""
    signature = inspect.signature(forward, eval_str=True)
    parameters = [
        each
        if each.annotation is not each.empty
        else each.replace(annotation=Tensor | None if each.default is None else Tensor)
        for each in signature.parameters.values()
    ]
    result = signature.return_annotation
    signature = signature.replace(
        parameters=parameters,
        return_annotation=Tensor if result is signature.empty else result,
    )

    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__annotations__ = {
        **{each.name: each.annotation for each in parameters},
        "return": signature.return_annotation,
    }
    return call


def _inner(call: Any, externalize: Any, rewrite: Rewrite, suffix: str) -> Inner:
    try:
        program = _without(suffix, rewrite(externalize._torch_export_module(call)))
    except Exception as error:
        raise BackendError(f"externalize: {call.module_path}: {_cannot(error)}") from error
    record = externalize._finalize_module_export(call, program)
    return Inner(call.module_path, program, record)


def _without(suffix: str, program: ExportedProgram) -> ExportedProgram:
    """Return a program whose nodes, and so its outputs, are called alike in every export."""
    names: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and suffix in node.name:
            before = node.name
            node._rename(before.replace(f"_{suffix}", ""))
            names[before] = node.name
    for spec in program.graph_signature.output_specs:
        if spec.arg.name in names:
            spec.arg.name = names[spec.arg.name]
    return program


def _name(function: str, inner: Sequence[Inner]) -> None:
    """Name graphs alike in every export, and with a letter first, as the format wants it."""
    counts: dict[str, int] = {}
    for each in inner:
        count = counts[each.path] = counts.get(each.path, -1) + 1
        each.record.name = f"{function}.{each.path}{f'_{count}' if count else ''}"


def _cannot(error: Exception) -> str:
    return (
        "it cannot be a graph of its own: it has to take and return tensors, without writing to "
        f"them ({summary(error)}; coreai-torch {version('coreai-torch')}). Name a module inside "
        "of it, or around it, or leave it out"
    )


def _at(wanted: dict[str, Any]) -> str:
    return f"externalize: {', '.join(list(wanted)[:_SHOWN])}"


# --- checks -------------------------------------------------------------------------------------


def _check_attributes(name: str, module: nn.Module, composite: Any) -> None:
    for attribute in () if composite is None else composite.attributes:
        value = getattr(module, attribute, None)
        if not isinstance(value, (bool, int, float, str)):
            raise BackendError(
                f"composites: {name} has no number or text {attribute!r}"
                f"{did_you_mean(attribute, vars(module))}"
            )


def _check_called(wanted: dict[str, Any], inner: Sequence[Inner]) -> None:
    idle = [name for name in wanted if name not in {each.path for each in inner}]
    if idle:
        raise BackendError(
            f"externalize: the model does not call {idle[0]} with these inputs; leave it out"
        )


def _check_states(program: ExportedProgram, inner: Inner) -> None:
    """Refuse a state in a graph of its own, which would be a constant there."""
    written = _places(program, set(program.graph_signature.buffers_to_mutate.values()))
    signature = inner.program.graph_signature
    own = set(signature.buffers_to_mutate.values())
    read = {
        target
        for target in signature.inputs_to_buffers.values()
        if _places(inner.program, {target}) & written
    }
    if own | read:
        raise BackendError(
            f"externalize: {inner.path} uses a state, {min(own | read)}, and a graph of its own "
            "has none; name modules inside of it that do not, or leave it out"
        )


def _places(program: ExportedProgram, names: set[str]) -> set[int]:
    held = {**program.constants, **program.state_dict}
    return {held[name].untyped_storage().data_ptr() for name in names if name in held}
