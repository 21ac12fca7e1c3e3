"""YAML of anybody, read safely and in bounds: mappings, lists and scalars, each with its line.

Depth, size and what aliases stand for are bounded before anything is made of the text, so that a
few lines cannot ask for gigabytes; what a scalar cannot be is an error with its line.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from palette_core.config.problems import MINIMAL, Path
from palette_core.errors import ConfigError, did_you_mean, shortened

MAX_CHARACTERS = 16_000_000
MAX_DEPTH = 100
MAX_VALUES = 300_000  # with everything that aliases repeat
MAX_DIGITS = 100  # of one number

_LONG = 50  # characters of text that count as one more value
_MERGE = "tag:yaml.org,2002:merge"
_TEXT = "tag:yaml.org,2002:str"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def read(name: str, content: str | bytes) -> tuple[Any, yaml.Node]:
    """Return what a file holds, keys as the text that stands there, and its nodes.

    Args:
        name: what errors call the file.
        content: the file, as text or as the bytes of any encoding that YAML knows.

    Raises:
        ConfigError: it is empty, not YAML, out of bounds, or has a key twice.
    """
    if len(content) > MAX_CHARACTERS:
        raise ConfigError(
            f"{name}: {len(content):,} characters are more than a config has ({MAX_CHARACTERS:,})"
        )
    try:
        loader = _Loader(content)
        root = loader.get_single_node()
        if root is None:
            raise ConfigError(f"{name}: the file is empty; {MINIMAL}")
        _read_keys_as_text(root, name)
        values = _values(root, {})
        if values > MAX_VALUES:
            raise ConfigError(
                f"{name}: aliases make {values:,} values of it, more than a config has "
                f"({MAX_VALUES:,})"
            )
        return loader.construct_document(root), root
    except yaml.YAMLError as error:
        raise ConfigError(_syntax(name, content, error)) from error
    except (RecursionError, _DepthError):
        raise ConfigError(
            f"{name}: nested too deeply to be a config, more than {MAX_DEPTH} levels"
        ) from None


def value(name: str, text: str) -> Any:
    """Return what a text that is a value of its own means in YAML; None where it is empty.

    Raises:
        ConfigError: it is not YAML, out of bounds, or has a key twice.
    """
    return read(name, text)[0] if text.strip() else None


def line_of(root: yaml.Node, path: Path) -> int:
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


class _DepthError(Exception):
    """Raised while nodes are made, before the text that nests deeper is read."""


class _Loader(yaml.SafeLoader):
    """The safe loader, in bounds, and with errors of its own kind only."""

    def __init__(self, content: str | bytes) -> None:
        super().__init__(content)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _DepthError
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node.tag in _NUMBERS and len(str(node.value)) > MAX_DIGITS:
            raise _not_a(node, f"number of at most {MAX_DIGITS} digits")
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # What Python's own constructors raise: of dates that there are not, of empty numbers.
            raise _not_a(node, node.tag.rpartition(":")[2]) from None


def _not_a(node: Any, kind: str) -> yaml.constructor.ConstructorError:
    value = shortened(repr(node.value)) if isinstance(node, yaml.ScalarNode) else "this"
    return yaml.constructor.ConstructorError(
        None, None, f"{value} is not a valid {kind}", node.start_mark
    )


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node is of, those of aliases counted wherever they are repeated."""
    if id(node) not in known:
        known[id(node)] = 1  # also while it is counted: an alias within itself repeats nothing
        if isinstance(node, yaml.ScalarNode):
            return 1 + len(node.value) // _LONG
        inner = node.value
        if isinstance(node, yaml.MappingNode):
            inner = [value for _, value in node.value]
        known[id(node)] = 1 + sum(_values(value, known) for value in inner)
    return known[id(node)]


def _syntax(name: str, content: str | bytes, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = shortened(getattr(error, "problem", None) or " ".join(str(error).split()))
    context = getattr(error, "context", None)
    line = f":{mark.line + 1}" if mark is not None else ""
    hint = ""
    if context == "while scanning an alias":
        hint = "; write \"*\" in quotes when it is a key, and '*name' to refer to '&name'"
    if problem.startswith("found undefined alias") and isinstance(content, str | bytes):
        text = content if isinstance(content, str) else content.decode(errors="replace")
        hint = did_you_mean(problem.split("'")[1], re.findall(r"&([\w-]+)", text)[:1000])
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
                f"{name}:{line}: key {shortened(repr(key.value))} is there twice, first on line "
                f"{lines[key.value]}; keep one"
            )
        lines[key.value] = line
    node.value = [(_as_text(key), value) for key, value in node.value]


def _as_text(key: yaml.ScalarNode) -> yaml.ScalarNode:
    if key.tag == _MERGE:
        return key
    return yaml.ScalarNode(_TEXT, key.value, key.start_mark, key.end_mark)
