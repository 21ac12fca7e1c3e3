"""Options of plug-ins: what the user wrote, checked against the entry's model.

The user's are plain values, which configs and files hold; the model that they validate to is what
the plug-in gets, in plans and in workers too. It is never written down: secrets, excluded and
computed fields, and aliases would not survive that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from palette_core.errors import PluginOptionsError, did_you_mean
from palette_core.plugins.entries import PluginEntry
from palette_core.plugins.guards import guarded
from palette_core.plugins.kinds import kind_of


def validate_options(entry: PluginEntry, options: Mapping[str, Any] | BaseModel) -> BaseModel:
    """Validate a user's options against the entry's options model.

    Args:
        entry: the plug-in's record.
        options: the user's; or what this function has made of them, which is returned.

    Raises:
        PluginOptionsError: naming the plug-in, the option, the value and the known options.
            Values are left out where the option holds a secret.
    """
    if isinstance(options, entry.options):
        return options
    who = f"{kind_of(entry)} {entry.name!r}"
    options = _words_as_sequences(entry.options, options)
    try:
        # A validator of the plug-in's own that breaks must not look like an error of the core.
        return guarded(
            f"{who}: checking its options",
            PluginOptionsError,
            lambda: entry.options.model_validate(options),
            passes=(ValidationError,),
            # Looking after the process takes longer than an options model of the core's own.
            is_ours=entry.options.__module__.partition(".")[0] == __package__.partition(".")[0],
        )
    except ValidationError as error:
        schema = entry.options.model_json_schema()
        problems = "; ".join(_problem(item, schema) for item in error.errors(include_url=False))
        known = ", ".join(_known(schema)) or "none"
        raise PluginOptionsError(f"{who}: {problems} (options: {known})") from None


def _words_as_sequences(
    model: type[BaseModel], options: Mapping[str, Any] | BaseModel
) -> Mapping[str, Any] | BaseModel:
    """Take a single word for a sequence of one, where an option is a tuple or list of words."""
    if not isinstance(options, Mapping):
        return options
    of_words = {
        field.alias or name
        for name, field in model.model_fields.items()
        if get_origin(field.annotation) in (tuple, list) and get_args(field.annotation)[0] is str
    }
    return {
        name: (value,) if name in of_words and isinstance(value, str) else value
        for name, value in options.items()
    }


HIDDEN = "**********"  # what stands for a secret in text


def without_secrets(value: Any, entries: Iterable[PluginEntry]) -> Any:
    """Return JSON values, such as a config's, with `HIDDEN` for secrets in options of plug-ins.

    Args:
        value: options are in dictionaries under keys that end in ``_options``.
        entries: whose options may be among them; which is whose is not looked at.
    """
    secret: set[str] = set()
    if any(_options_in(value)):
        for schema in (entry.options.model_json_schema() for entry in entries):
            secret |= {name for name in _known(schema) if _holds_a_secret(schema, name)}
    copy = json.loads(json.dumps(value)) if secret else value
    for options in _options_in(copy):
        options.update(dict.fromkeys(secret & options.keys(), HIDDEN))
    return copy


def _options_in(value: Any, is_options: bool = False) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if is_options and value:
            yield value
        for key, item in value.items():
            yield from _options_in(item, key.endswith("_options"))
    elif isinstance(value, list):
        for item in value:
            yield from _options_in(item)


def _known(schema: Mapping[str, Any]) -> list[str]:
    """Return names as users write them: aliases, where there are."""
    return list(schema.get("properties", ()))


def _problem(item: Any, schema: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "options"
    if item["type"] == "extra_forbidden":
        return f"unknown option {where!r}{did_you_mean(where, _known(schema))}"
    if item["type"] == "missing":
        return f"option {where!r} is required"
    if _holds_a_secret(schema, *item["loc"][:1]):
        return f"{where}: {item['msg']}"
    return f"{where}={item['input']!r}: {item['msg']}"


def _holds_a_secret(schema: Mapping[str, Any], option: object = None) -> bool:
    """Return whether an option, or any where the problem is about all, is never to be shown."""
    part = schema.get("properties", {}).get(option, schema)
    return '"writeOnly": true' in json.dumps([part, schema.get("$defs")])
