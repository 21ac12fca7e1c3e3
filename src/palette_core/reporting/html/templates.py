"""Templates of pages, and the parts that are put into them as they are."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = "html"
_ROOM = "palette_core.reporting"


def render(template: str, **values: Any) -> str:
    """Fill in a template; every value is escaped."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader(_ROOM, _FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    made.globals["part"] = _part
    return made


def _part(name: str) -> Any:
    """Return one of our own styles or scripts, which are not escaped."""
    from markupsafe import Markup

    return Markup((files(_ROOM) / _FOLDER / name).read_text(encoding="utf-8"))
