"""Puts pictures in the place of mermaid blocks, so that pages need no network when they are read.

MkDocs runs this file as a hook. The pictures are drawn by ``tools/diagrams.mjs``.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

PICTURES = Path(__file__).parents[1] / "diagrams"
BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs hook: put a picture where a page has a mermaid block.

    Raises:
        FileNotFoundError: the block has changed since pictures were drawn.
    """
    return BLOCK.sub(lambda found: f'<div class="diagram">\n{picture(found[1])}</div>', markdown)


def picture(source: str) -> str:
    """Return the picture of a block, as HTML without empty lines.

    Raises:
        FileNotFoundError: there is none of this text.
    """
    path = PICTURES / f"{hashlib.sha256(source.encode('utf8')).hexdigest()[:12]}.svg"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: draw it by tools/diagrams.mjs, which says how")
    lines = path.read_text("utf8").splitlines()
    return "".join(f"{line}\n" for line in lines if line.strip())
