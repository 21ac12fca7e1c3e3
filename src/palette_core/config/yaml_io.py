"""Configs in YAML files and dictionaries, with errors that name the place.

Keys of a YAML mapping are read as the text that stands there, so a module called ``0.10`` needs
no quotes. Everything else follows YAML 1.1, read safely.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from palette_core._common.files import atomic_path
from palette_core.config import problems, yaml_nodes
from palette_core.config.problems import CONFIG_KEY, MINIMAL
from palette_core.config.spec import PalettizationSpec
from palette_core.errors import ConfigError, did_you_mean, shortened

ANCHORS_KEY = "palettization_spec"

ModelT = TypeVar("ModelT", bound=BaseModel)

_ANCHORS: TypeAdapter[Any] = TypeAdapter(dict[str, PalettizationSpec | None] | None)
_TEXT = "tag:yaml.org,2002:str"


def parse(model: type[ModelT], data: Any, locate: problems.Locate = problems.nowhere) -> ModelT:
    """Make a config from the content of a file.

    Raises:
        ConfigError: one line for each problem.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{locate(())}expected a mapping with the key {CONFIG_KEY!r}, "
            f"got {type(data).__name__}; {MINIMAL}"
        )
    found = [
        problems.line((str(key),), _unknown_section(key, model), locate)
        for key in islice((k for k in data if k not in (CONFIG_KEY, ANCHORS_KEY)), problems.MOST)
    ]
    try:
        _ANCHORS.validate_python(data.get(ANCHORS_KEY))
    except ValidationError as error:
        found += problems.lines(error, (ANCHORS_KEY,), locate)
    config: ModelT | None = None
    if data.get(CONFIG_KEY) is None:
        state = "is empty" if CONFIG_KEY in data else "is missing"
        where = (CONFIG_KEY,) if CONFIG_KEY in data else ()
        found.append(problems.line(where, f"{CONFIG_KEY!r} {state}; {MINIMAL}", locate))
    else:
        try:
            config = model.model_validate(data[CONFIG_KEY])
        except ValidationError as error:
            found += problems.lines(error, (CONFIG_KEY,), locate)
    if found or config is None:
        raise ConfigError("\n".join(found))
    return config


def _unknown_section(key: Any, model: type[BaseModel]) -> str:
    if key in model.model_fields:
        return f"unknown key {key!r}; it belongs under {CONFIG_KEY!r}"
    hint = did_you_mean(key, (CONFIG_KEY, ANCHORS_KEY))
    name = shortened(repr(key))
    return f"unknown key {name}{hint or f'; keys are {CONFIG_KEY!r} and {ANCHORS_KEY!r}'}"


def load(model: type[ModelT], source: str | Path | IO[Any]) -> ModelT:
    """Read a config from a path or an open stream.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: one line for each problem.
    """
    if isinstance(source, (str, Path)):
        if "\n" in str(source):
            raise ConfigError(
                "from_yaml takes a path or an open stream, got text; wrap it in io.StringIO"
            )
        name, content = str(source), Path(source).read_bytes()
    elif hasattr(source, "read"):
        name = str(getattr(source, "name", "<stream>"))
        content = _content(name, source)
    else:
        raise TypeError(
            f"from_yaml takes a path or an open stream, got {type(source).__name__}; "
            "from_dict takes a dictionary"
        )
    data, root = yaml_nodes.read(name, content)

    def locate(path: problems.Path) -> str:
        return f"{name}:{yaml_nodes.line_of(root, path)}: "

    return parse(model, data, locate)


def _content(name: str, stream: IO[Any]) -> Any:
    try:
        return stream.read()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not text: {error}") from None


def locator(path: str | Path) -> problems.Locate:
    """Return what turns a path into the config at ``path`` into file and line.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it is not YAML.
    """
    _, root = yaml_nodes.read(str(path), Path(path).read_bytes())
    return lambda parts: f"{path}:{yaml_nodes.line_of(root, (CONFIG_KEY, *parts))}: "


class _Dumper(yaml.SafeDumper):
    """Writes equal objects out each time, not as anchors that nobody named."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML takes these for line breaks and loses them, unless they are escaped.
    style = '"' if set("\x85\u2028\u2029\ufeff") & set(text) else None
    return dumper.represent_scalar(_TEXT, text, style)


_Dumper.add_representer(str, _represent_text)


def dump(data: Mapping[str, Any], target: str | Path | IO[Any] | None) -> str:
    """Return plain data as YAML, and write it to ``target``: to a path, all of it or nothing."""
    text: str = yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    if isinstance(target, (str, Path)):
        with atomic_path(Path(target)) as temporary:
            temporary.write_bytes(text.encode())
    elif isinstance(target, (io.RawIOBase, io.BufferedIOBase)):
        target.write(text.encode())
    elif target is not None:
        target.write(text)
    return text
