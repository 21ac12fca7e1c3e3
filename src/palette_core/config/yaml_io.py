"""Configs in YAML files and dictionaries, with errors that name the place.

Keys of a YAML mapping are read as the text that stands there, so a module called ``0.10`` needs
no quotes. Everything else follows YAML 1.1, read safely.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from palette_core._common.files import atomic_path
from palette_core.config import problems
from palette_core.config.spec import PalettizationSpec
from palette_core.errors import ConfigError, did_you_mean

CONFIG_KEY = "kmeans_palettization_config"
ANCHORS_KEY = "palettization_spec"
MINIMAL = f"a minimal config is '{CONFIG_KEY}: {{}}'"

ModelT = TypeVar("ModelT", bound=BaseModel)

_ANCHORS: TypeAdapter[Any] = TypeAdapter(dict[str, PalettizationSpec | None] | None)
_MERGE = "tag:yaml.org,2002:merge"
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
        for key in data
        if key not in (CONFIG_KEY, ANCHORS_KEY)
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
    return f"unknown key {key!r}{hint or f'; keys are {CONFIG_KEY!r} and {ANCHORS_KEY!r}'}"


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
        name, content = str(getattr(source, "name", "<stream>")), source.read()
    else:
        raise TypeError(
            f"from_yaml takes a path or an open stream, got {type(source).__name__}; "
            "from_dict takes a dictionary"
        )
    data, root = _read(name, content)

    def locate(path: problems.Path) -> str:
        return f"{name}:{_line_of(root, path)}: "

    return parse(model, data, locate)


def locator(path: str | Path) -> problems.Locate:
    """Return what turns a path into the config at ``path`` into file and line.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it is not YAML.
    """
    _, root = _read(str(path), Path(path).read_bytes())
    return lambda parts: f"{path}:{_line_of(root, (CONFIG_KEY, *parts))}: "


def _read(name: str, content: str | bytes) -> tuple[Any, yaml.Node]:
    try:
        loader = yaml.SafeLoader(content)
        root = loader.get_single_node()
        if root is None:
            raise ConfigError(f"{name}: the file is empty; {MINIMAL}")
        _read_keys_as_text(root, name)
        return loader.construct_document(root), root
    except yaml.YAMLError as error:
        raise ConfigError(_syntax(name, content, error)) from error
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply to be a config") from None


def _syntax(name: str, content: str | bytes, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    context = getattr(error, "context", None)
    line = f":{mark.line + 1}" if mark is not None else ""
    hint = ""
    if context == "while scanning an alias":
        hint = "; write \"*\" in quotes when it is a key, and '*name' to refer to '&name'"
    if problem.startswith("found undefined alias") and isinstance(content, str | bytes):
        text = content if isinstance(content, str) else content.decode(errors="replace")
        hint = did_you_mean(problem.split("'")[1], re.findall(r"&([\w-]+)", text))
    return f"{name}{line}: not valid YAML: {f'{context}, ' if context else ''}{problem}{hint}"


def _read_keys_as_text(root: yaml.Node, name: str) -> None:
    """Make every key a string, and refuse a mapping that has one twice."""
    waiting, visited = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, name)
            waiting += [value for _, value in node.value]


def _check_keys(node: yaml.MappingNode, name: str) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{name}:{line}: a key is a list or a mapping; keys are names")
        if key.value in lines:
            raise ConfigError(
                f"{name}:{line}: key {key.value!r} is there twice, first on line "
                f"{lines[key.value]}; keep one"
            )
        lines[key.value] = line
    node.value = [(_as_text(key), value) for key, value in node.value]


def _as_text(key: yaml.ScalarNode) -> yaml.ScalarNode:
    if key.tag == _MERGE:
        return key
    return yaml.ScalarNode(_TEXT, key.value, key.start_mark, key.end_mark)


def _line_of(root: yaml.Node, path: problems.Path) -> int:
    """Return the line, from 1, of the deepest part of ``path`` that is in the file."""
    node, mark = root, root.start_mark
    for part in path:
        if isinstance(node, yaml.MappingNode):
            # Merged keys come first once the mapping is read, so the last one counts.
            pairs = [pair for pair in node.value if pair[0].value == part]
            if not pairs:
                break
            key, node = pairs[-1]
            mark = key.start_mark
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            mark = node.start_mark
        else:
            break
    return int(mark.line) + 1


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
        with atomic_path(Path(target).resolve()) as temporary:
            temporary.write_bytes(text.encode())
    elif isinstance(target, (io.RawIOBase, io.BufferedIOBase)):
        target.write(text.encode())
    elif target is not None:
        target.write(text)
    return text
