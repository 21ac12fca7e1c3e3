"""Writes the reference part of configuration.md from the pydantic models themselves.

MkDocs runs this file as a hook; ``python docs/gen/configuration.py`` prints the same text.
Descriptions are those of the fields, or of the ``Attributes:`` section of the model's docstring.
A field without one is an error, so that nothing goes undocumented.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, WithJsonSchema
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from palette_core.config import KMeansPalettizerConfig
from palette_core.plugins import Granularity, GranularityEntry, PluginEntry
from palette_core.plugins.catalog import get_catalog
from palette_core.plugins.registries import Registered, Registry

MARKER = "<!-- reference: generated from the models -->"
BUILT_IN = "palette-core"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs hook: put the reference where a page asks for it."""
    return markdown.replace(MARKER, render()) if MARKER in markdown else markdown


def render() -> str:
    """Return the whole reference as Markdown."""
    parts = [model_section(model) for model in models()]
    parts += [enum_section(choices) for choices in enums()]
    parts += [
        registry_section(registry) for registry in get_catalog().registries() if built_in(registry)
    ]
    return "\n\n".join(parts) + "\n"


# --- models -------------------------------------------------------------------------------------


def models() -> list[type[BaseModel]]:
    """Every model that a configuration can hold, each once, outermost first."""
    found: list[type[BaseModel]] = []
    waiting: list[type[BaseModel]] = [KMeansPalettizerConfig]
    while waiting:
        model = waiting.pop(0)
        if model in found:
            continue
        found.append(model)
        for field in model.model_fields.values():
            waiting += models_in(field.annotation)
    return found


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Models that a type mentions; an abstract granularity stands for the built-in ones."""
    if inspect.isclass(annotation) and inspect.isabstract(annotation):
        yield from built_in_granularities() if annotation is Granularity else ()
    elif inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def enums() -> list[type[Enum]]:
    """Every enumeration that a field of a model takes its values from, each once."""
    fields = [field for model in models() for field in model.model_fields.values()]
    found = [kind for field in fields for kind in _flat(field.annotation)]
    return list(
        dict.fromkeys(kind for kind in found if inspect.isclass(kind) and issubclass(kind, Enum))
    )


def _flat(annotation: Any) -> list[Any]:
    return [annotation, *(inner for part in get_args(annotation) for inner in _flat(part))]


def enum_section(choices: type[Enum]) -> str:
    """Heading and description of an enumeration, which must mention every value.

    Raises:
        ValueError: a value is described nowhere.
    """
    about, _ = read_docstring(choices)
    for member in choices:
        if f"`{member.value}`" not in about:
            raise ValueError(f"{member!r} of {choices.__qualname__} is described nowhere")
    return f"### {choices.__name__}\n\n{about}"


def built_in_granularities() -> list[type[Granularity]]:
    """Classes of the granularities that the core registers."""
    return [item.entry.model for item in built_in(get_catalog().granularities)]


def model_section(model: type[BaseModel]) -> str:
    """Heading, description and table of fields of one model."""
    about, described = read_docstring(model)
    return f"### {model.__name__}\n\n{about}\n\n{field_table(model, described)}"


def field_table(model: type[BaseModel], described: Mapping[str, str]) -> str:
    """A table with one row per field.

    Raises:
        ValueError: a field is described nowhere.
    """
    if not model.model_fields:
        return "No fields."
    rows = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        meaning = field.description or described.get(name)
        if name == "type" and issubclass(model, Granularity):
            meaning = meaning or "Names the granularity in a file."
        if not meaning:
            raise ValueError(f"field {name!r} of {model.__qualname__} is described nowhere")
        cells = (f"`{name}`", type_text(field), default_text(field), meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def read_docstring(model: type) -> tuple[str, dict[str, str]]:
    """Return what stands before the sections of a docstring, and its ``Attributes:``."""
    text = to_markdown(inspect.cleandoc(model.__doc__ or ""))
    about, _, rest = text.partition("\nAttributes:\n")
    described: dict[str, str] = {}
    for line in rest.splitlines():
        if entry := re.match(r" {4}(\w+)(?: \(.*?\))?: (.*)", line):
            name = entry[1]
            described[name] = entry[2]
        elif line.startswith(" " * 8):
            described[name] += " " + line.strip()
        elif line.strip():
            break
    about = re.split(r"\n(?:Raises|Example|Examples|Note|Args):\n", about)[0]
    return about.strip(), described


def to_markdown(text: str) -> str:
    """Turn the reStructuredText roles and literals of docstrings into Markdown code."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")


# --- types and defaults -------------------------------------------------------------------------


def type_text(field: FieldInfo) -> str:
    """The type of a field as a reader needs it: choices and bounds spelled out."""
    schema = [m for m in field.metadata if isinstance(m, WithJsonSchema)]
    text = _schema_text(schema[0]) if schema else _type(field.annotation)
    bounds = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    limits = [
        f"{sign} {getattr(item, attribute)}"
        for item in field.metadata
        for attribute, sign in bounds.items()
        if hasattr(item, attribute)
    ]
    return f"{text} {', '.join(limits)}".strip()


def _type(annotation: Any) -> str:  # noqa: PLR0911 - one line per form of annotation
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        schema = [m for m in parts[1:] if isinstance(m, WithJsonSchema)]
        return _schema_text(schema[0]) if schema else _type(parts[0])
    if origin is Literal:
        return " | ".join(f"`{_value(part)}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " | ".join(_type(part) for part in parts)
    if origin is dict:
        return f"mapping from {_type(parts[0])} to {_type(parts[1])}"
    if origin is not None:
        inside = ", ".join(_type(part) for part in parts if part is not Ellipsis)
        return f"{origin.__name__} of {inside}"
    if annotation is type(None):
        return "`null`"
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        values = " | ".join(f"`{_value(member.value)}`" for member in annotation)
        return f"[{annotation.__name__}](#{annotation.__name__.lower()}): {values}"
    if inspect.isclass(annotation) and issubclass(annotation, Granularity):
        names = [model.__name__ for model in models_in(annotation)]
        return " | ".join(f"[{name}](#{name.lower()})" for name in names)
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return "any" if annotation is Any else annotation.__name__


def _schema_text(schema: WithJsonSchema) -> str:
    return str((schema.json_schema or {})["type"])


def default_text(field: FieldInfo) -> str:
    """The default as it is written in YAML, or "required"."""
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True, validated_data={})
    return "" if default is PydanticUndefined else f"`{_value(default)}`"


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, Granularity):
        return f"{{type: {value.type}}}"
    if isinstance(value, BaseModel):
        return f"{type(value).__name__}()" if value == type(value)() else value.model_dump_json()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_value(item)}" for key, item in value.items()) + "}"
    return str(value).removeprefix("torch.")


# --- plug-ins -----------------------------------------------------------------------------------


def built_in(registry: Registry[Any]) -> list[Registered[Any]]:
    """Entries of a registry that the core itself registers."""
    return [item for item in registry if item.distribution.name == BUILT_IN]


def registry_section(registry: Registry[Any]) -> str:
    """The built-in plug-ins of one kind, with their options."""
    plural = f"{registry.kind}s".replace("ys", "ies")
    parts = [f"### Built-in {plural}"]
    parts += [entry_text(item.entry) for item in built_in(registry)]
    return "\n\n".join(parts)


def entry_text(entry: PluginEntry) -> str:
    """Name, summary and options of one plug-in."""
    text = f"**`{entry.name}`**: {entry.summary.rstrip('.')}."
    if isinstance(entry, GranularityEntry):
        return f"{text} See [{entry.model.__name__}](#{entry.model.__name__.lower()})."
    if not entry.options.model_fields:
        return f"{text} No options."
    return f"{text}\n\n{field_table(entry.options, read_docstring(entry.options)[1])}"


if __name__ == "__main__":
    print(render())
