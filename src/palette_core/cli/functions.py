"""Functions, names and metadata of a file to export, out of a small YAML file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from palette_core.cli.axes import dynamic_shapes, read_dynamic
from palette_core.cli.factories import FactoryError, Loaded, load_callable, make_input
from palette_core.config import problems, yaml_nodes
from palette_core.errors import ConfigError, did_you_mean
from palette_core.model import as_inputs, call_arguments
from palette_core.plugins import ExportFunction

_KINDS = ("input_names", "output_names", "state_names")
_Names = str | list[str] | dict[str, str] | None


class Named(BaseModel):
    """Names of inputs, outputs and states."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    input_names: _Names = None
    output_names: _Names = None
    state_names: _Names = None

    def names(self) -> dict[str, Any]:
        """Return the names that are given, by argument of `KMeansPalettizer.export`."""
        given = {kind: getattr(self, kind) for kind in _KINDS}
        return {kind: names for kind, names in given.items() if names is not None}


class Called(BaseModel):
    """Inputs, axes and module of a function."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    inputs: str | list[str] | dict[str, str] | None = None
    dynamic: str | list[str] = Field(default_factory=list)
    module: str | None = None

    @property
    def axes(self) -> list[str]:
        """Texts of axes whose length may vary."""
        return [self.dynamic] if isinstance(self.dynamic, str) else self.dynamic


@final
class _Function(Called, Named):
    pass


@final
class _Content(Named):
    functions: dict[str, _Function | None] = Field(default_factory=dict)
    metadata: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class FunctionsFile:
    """Content of a file of functions, checked but for what it says about the model."""

    path: Path
    content: _Content

    def arguments(self, loaded: Loaded) -> dict[str, Any]:
        """Return arguments of `KMeansPalettizer.export`: ``functions`` where there are, and names.

        Raises:
            FactoryError: a module, an input or an axis is not there; with file, function and field.
        """
        functions = {
            name: self._function(name, given or _Function(), loaded)
            for name, given in self.content.functions.items()
        }
        made: dict[str, Any] = self.content.names()
        if functions:
            made["functions"] = functions
        if self.content.metadata:
            made["metadata"] = dict(self.content.metadata)
        return made

    def _function(self, name: str, given: _Function, loaded: Loaded) -> ExportFunction:
        where = f"{self.path}: {problems.dotted(('functions', name))}"
        return made_function(where, given, given.names(), loaded)


def read_functions(path: Path) -> FunctionsFile:
    """Read a file of functions.

    Raises:
        ConfigError: it is no YAML of that kind; one line for each problem, with its line.
        FileNotFoundError: there is no such file.
    """
    return FunctionsFile(path, read_yaml(path, _Content, "functions, names or metadata"))


Content = TypeVar("Content", bound=BaseModel)


def read_yaml(path: Path, kind: type[Content], holds: str) -> Content:
    """Read a YAML file of a kind; ``holds`` says what it has.

    Raises:
        ConfigError: it is none; one line for each problem, with its line.
        FileNotFoundError: there is no such file.
    """
    text = path.read_bytes()
    if not text.strip():
        raise ConfigError(f"{path}: the file is empty; it has {holds}")
    content, root = yaml_nodes.read(str(path), text)

    def locate(parts: problems.Path) -> str:
        return f"{path}:{yaml_nodes.line_of(root, parts)}: "

    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(problems.lines(error, (), locate))) from None


def read_metadata(texts: Sequence[str]) -> dict[str, str]:
    """Read ``NAME=VALUE``; values are text.

    Raises:
        FactoryError: a text is none, or a name comes twice.
    """
    made: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.strip() or name.strip() in made:
            raise FactoryError(f"cannot read --metadata {text!r}; write NAME=VALUE, each name once")
        made[name.strip()] = value
    return made


# --- what a function says of the model ------------------------------------------------------------


def made_function(
    where: str, given: Called, names: Mapping[str, Any], loaded: Loaded
) -> ExportFunction:
    """Return a function of a loaded model.

    Raises:
        FactoryError: a module, an input or an axis is not there; beginning with ``where``.
    """
    field = "module"
    try:
        module = None if given.module is None else _module(given.module, loaded.model)
        field = "inputs"
        if given.inputs is None and module is not None:
            raise FactoryError("missing; a module of its own has inputs of its own")
        inputs = loaded.example_inputs if given.inputs is None else _inputs(given.inputs)
        called = Loaded(loaded.model if module is None else module, inputs)
        _check_call(called)
        field = "dynamic"
        axes = dynamic_shapes(read_dynamic(given.axes, "axis"), called, "axis of")
    except FactoryError as error:
        raise FactoryError(f"{where}.{field}: {error}") from None
    return ExportFunction(inputs, axes, module, **names)


def _module(text: str, model: nn.Module) -> nn.Module:
    """Return a part of the model by its path, or what a callable makes of the model."""
    if ":" in text or text.endswith(".py"):
        made = _called(text, model)
        if not isinstance(made, nn.Module):
            raise FactoryError(f"{text} must return a torch.nn.Module, got {type(made).__name__}")
        return made
    try:
        return model.get_submodule(text)
    except AttributeError:
        names = [name for name, _ in model.named_modules() if name]
        hint = did_you_mean(text, names) or f"; there are {', '.join(names[:8])}"
        raise FactoryError(
            f"no module of the model is called {text!r} (a module made around the model is given "
            f"as file.py:callable){hint}"
        ) from None


def _inputs(given: str | list[str] | dict[str, str]) -> tuple[Any, ...] | dict[str, Any]:
    """Return tensors of dtypes and shapes, in order or by argument, or what a callable returns."""
    if isinstance(given, dict):
        return {name: make_input(text) for name, text in given.items()}
    if isinstance(given, list) or "[" in given:
        return tuple(make_input(text) for text in ([given] if isinstance(given, str) else given))
    try:
        return as_inputs(_called(given), f"what {given} returns")
    except TypeError as error:
        raise FactoryError(str(error)) from None


def _check_call(called: Loaded) -> None:
    args, kwargs = call_arguments(called.example_inputs)
    try:
        inspect.signature(called.model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise FactoryError(f"{error} of {type(called.model).__name__}.forward") from None


def _called(text: str, *arguments: Any) -> Any:
    function = load_callable(text)
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        raise FactoryError(f"{text} failed: {type(error).__name__}: {error}") from error
