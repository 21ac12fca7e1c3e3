"""Make a plug-in distribution from the templates, for an author to change."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path

from palette_core.errors import ConfigError, MissingExtraError, did_you_mean
from palette_core.plugins import INTERFACE_VERSION
from palette_core.plugins.kinds import KINDS

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_COMMON = "common"
_ABOUT = "about.toml"


def templates() -> Traversable:
    """Return the folder of templates: one of each kind's slug, and what all have."""
    return files("palette_core.cli") / "templates"


def offered() -> list[str]:
    """Return the slugs of the kinds that there is a template of."""
    return [kind.slug for kind in KINDS if (templates() / kind.slug).is_dir()]


def make_plugin(name: str, kind: str, into: Path) -> Path:
    """Write a distribution that installs, is listed and keeps its contract.

    Args:
        name: of the distribution, such as ``palette-lloyd``.
        kind: what it provides, one of `offered`.
        into: the folder in which its own folder is made.

    Returns:
        The distribution's folder.

    Raises:
        ConfigError: the name cannot be one, there is no such kind, or the folder exists.
        MissingExtraError: copier is not installed.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a distribution here; use lower-case letters, digits "
            "and single '-', such as palette-lloyd"
        )
    if kind not in offered():
        known = ", ".join(offered())
        raise ConfigError(
            f"there is no kind of plug-in {kind!r}{did_you_mean(kind, offered())}; kinds: {known}"
        )
    folder = into / name
    if folder.exists():
        raise ConfigError(f"{folder} exists; choose another name, or another --into")
    try:
        from copier import run_copy
    except ImportError as error:
        raise MissingExtraError(
            "palette new-plugin needs copier: pip install 'palette-core[new-plugin]'"
        ) from error
    data = _answers(name, kind)
    with as_file(templates()) as folders:
        for part in (_COMMON, kind):
            # A kind's own files replace those that all have.
            source = str(folders / part)
            run_copy(source, folder, data=data, exclude=[_ABOUT], quiet=True, overwrite=True)
    return folder


def _answers(name: str, kind: str) -> dict[str, object]:
    package = name.replace("-", "_")
    entry = package.removeprefix("palette_")
    texts = tomllib.loads((templates() / kind / _ABOUT).read_text("utf8"))
    filled = {
        what: text.replace("{entry}", entry).replace("{package}", package)
        for what, text in texts.items()
    }
    named = {"name": name, "package": package, "entry": entry, "kind": kind}
    return {**named, **filled, "interface": INTERFACE_VERSION}
