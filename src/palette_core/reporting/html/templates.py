"""Templates of pages, and the parts that are put into them as they are."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """Fill in a template; every value is escaped."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    made.globals["part"] = _part
    return made


def _part(name: str) -> Any:
    """Return one of our own styles or scripts, which are not escaped."""
    from markupsafe import Markup

    return Markup((_HERE / name).read_text(encoding="utf-8"))
