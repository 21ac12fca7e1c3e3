"""Get a model and its example inputs from what a user points at on the command line."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palette_core._common.pytrees import deep_copy
from palette_core.errors import PaletteError, did_you_mean
from palette_core.model import as_inputs, call_arguments, restored_state
from palette_core.storage.packed_weight import PaletteModule
from palette_core.tensors.dtypes import parse_dtype

DEFAULT_CALLABLE = "load"

_INPUT_DTYPES = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


class FactoryError(PaletteError, ValueError):
    """The FACTORY argument cannot be turned into a model and example inputs."""


@dataclass(frozen=True)
class Loaded:
    """A model and what to call it with: positional inputs, or keyword inputs."""

    model: nn.Module
    example_inputs: tuple[Any, ...] | dict[str, Any]

    def run(self, model: nn.Module | None = None) -> Any:
        """Call ``model`` (or the loaded one) on the inputs, without gradients.

        Both are afterwards as before.

        Raises:
            FactoryError: the inputs cannot be copied.
        """
        target = self.model if model is None else model
        try:
            args, kwargs = deep_copy(call_arguments(self.example_inputs))
        except TypeError as error:
            raise FactoryError(f"the example inputs are for several runs: {error}") from error
        others = [m for m in target.modules() if not isinstance(m, PaletteModule)]
        with torch.no_grad(), restored_state(others):
            return target(*args, **kwargs)


def load_factory(text: str, inputs: Sequence[str] = ()) -> Loaded:
    """Call ``module:callable`` or ``file.py:callable`` (``:load`` when left out).

    The callable takes no arguments and returns the model and its example inputs (a tuple of
    positional or a dictionary of keyword inputs), or just the model; then ``inputs`` describes
    them, see `make_inputs`.

    Raises:
        FactoryError: the text, the import, the call or what it returns is not right.
    """
    source, name = _split(text)
    factory = _attribute(source, name)
    try:
        made = factory()
    except (Exception, SystemExit) as error:
        raise FactoryError(f"{text} failed: {type(error).__name__}: {error}") from error
    if isinstance(made, nn.Module):
        if not inputs:
            raise FactoryError(
                f"{text} returned a model without example inputs; describe them with --input, "
                "for example --input 'float32[1,3,224,224]', or return (model, example_inputs)"
            )
        return Loaded(made, make_inputs(inputs))
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise FactoryError(
            f"{text} must return (model, example_inputs) or a torch.nn.Module, "
            f"got {type(made).__name__}"
        )
    model, example = made
    if inputs:
        return Loaded(model, make_inputs(inputs))
    try:
        return Loaded(model, as_inputs(example, f"the example inputs that {text} returns"))
    except TypeError as error:
        raise FactoryError(str(error)) from None


def load_batches(text: str) -> list[Any]:
    """Call ``module:callable`` or ``file.py:callable`` and return the calibration batches it gives.

    Raises:
        FactoryError: the text, the import, the call or what it returns is not right.
    """
    factory = load_callable(text)
    try:
        made = factory()
        batches = None if isinstance(made, (Tensor, Mapping, str)) else list(made)
    except (Exception, SystemExit) as error:
        raise FactoryError(f"{text} failed: {type(error).__name__}: {error}") from error
    if not batches:
        raise FactoryError(
            f"{text} must return calibration batches, one model input or tuple of inputs each; "
            f"got {type(made).__name__}{'' if batches is None else ' of none'}"
        )
    return batches


def load_callable(text: str) -> Callable[..., Any]:
    """Return what ``module:callable`` or ``file.py:callable`` names, without calling it.

    Raises:
        FactoryError: the text or the import is not right, or there is no such callable.
    """
    return _attribute(*_split(text))


def make_inputs(texts: Sequence[str]) -> tuple[Tensor, ...] | dict[str, Tensor]:
    """Make the inputs that ``dtype[shape]`` or, by keyword, ``name=dtype[shape]`` describe.

    Raises:
        FactoryError: a text does not describe a tensor, a name comes twice, or only some have one.
    """
    named = [text.rpartition("=") for text in texts]
    names = [name.strip() for name, _, _ in named if name]
    if not names:
        return tuple(make_input(text) for text in texts)
    if len(names) != len(texts) or len(set(names)) != len(names):
        raise FactoryError(
            f"--input is given as {', '.join(texts)}; write dtype[shape] for inputs in their "
            "order, or name=dtype[shape] for every one, each name once"
        )
    if wrong := next((name for name in names if not name.isidentifier()), None):
        raise FactoryError(f"--input {wrong!r} is no name of an input, such as input_ids")
    return {name.strip(): make_input(text) for name, _, text in named}


def make_input(text: str) -> Tensor:
    """Make the tensor that ``dtype[shape]`` describes.

    Floating tensors are standard normal from a fixed seed, integers zero (valid as indices), and
    booleans true.

    Raises:
        FactoryError: the text does not describe a tensor.
    """
    match = re.fullmatch(r"\s*([\w.]+)\s*\[([\d,\s]*)\]\s*", text)
    if match is None:
        raise FactoryError(
            f"cannot read input {text!r}; write dtype[shape], for example int64[1,16]"
        )
    try:
        dtype = parse_dtype(match[1])
    except ValueError:
        raise FactoryError(
            f"input {text!r}: {match[1]!r} is no torch dtype; "
            "common ones are float32, float16, int64, bool"
        ) from None
    if dtype not in _INPUT_DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in _INPUT_DTYPES)
        raise FactoryError(f"input {text!r}: dtype must be one of {names}")
    shape = [int(part) for part in match[2].split(",") if part.strip()]
    try:
        return _filled(shape, dtype)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise FactoryError(f"input {text!r} cannot be made: {reason}") from None


def _filled(shape: list[int], dtype: torch.dtype) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    if dtype is torch.bool:
        return torch.ones(shape, dtype=dtype)
    return torch.zeros(shape, dtype=dtype)


def _split(text: str) -> tuple[str, str]:
    if text.endswith(".py"):
        return text, DEFAULT_CALLABLE
    source, colon, name = text.rpartition(":")
    if not colon:
        return text, DEFAULT_CALLABLE
    if not source or not name.isidentifier():
        raise FactoryError(
            f"cannot read {text!r}; write module:callable or path/to/file.py:callable"
        )
    return source, name


def _attribute(source: str, name: str) -> Callable[[], Any]:
    module = _import_file(Path(source)) if source.endswith(".py") else _import_module(source)
    found = getattr(module, name, None)
    if not callable(found):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise FactoryError(f"{source} has no callable {name!r}{did_you_mean(name, public)}")
    return found  # type: ignore[no-any-return]


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise FactoryError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise FactoryError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    # As when the file is run: its folder can be imported from, and it can be pickled from.
    sys.path.insert(0, str(path.parent.resolve()))
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise FactoryError(f"importing {path} failed: {type(error).__name__}: {error}") from error
    return module


def _import_module(name: str) -> Any:
    sys.path.insert(0, "")  # as python -m does
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise FactoryError(f"importing {name} failed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("")
