"""The table of formats that dense checkpoints are read from.

One more format is a module beside this one, which finds where tensors lie in its files, and one row
in `FORMATS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from palette_core.storage.tensor_spans import TensorFile, read_header_of
from palette_core.streaming.formats.torch_files import read_torch_file

INDEX = re.compile(r"\.index(\.[\w-]+)?\.json$")
"""End of the name of an index, behind the name that one whole file would have."""


@dataclass(frozen=True)
class CheckpointFormat:
    """One format of files that hold weights as they are, uncompressed.

    Attributes:
        title: how it is called in messages.
        suffixes: names of its files end so.
        in_folders: matches the name of a file of a model folder that holds weights of the model,
            all or some of them; other files of the same suffix hold something else.
        read: finds where the tensors of a file lie, without reading them.
    """

    title: str
    suffixes: tuple[str, ...]
    in_folders: re.Pattern[str]
    read: Callable[[Path], TensorFile]


FORMATS = (
    CheckpointFormat(
        "safetensors", (".safetensors",), re.compile(r".*\.safetensors$"), read_header_of
    ),
    CheckpointFormat(
        "torch.save",
        (".bin", ".pt", ".pth", ".ckpt"),
        re.compile(r"((diffusion_)?pytorch_)?model([.-][\w-]+)*\.(bin|pt|pth|ckpt)$"),
        read_torch_file,
    ),
)
"""In the order in which a folder that holds several is searched: first what is read most safely."""


def format_of(path: Path) -> CheckpointFormat:
    """Return the format that a file has by its name; by default the first."""
    return next((known for known in FORMATS if path.suffix in known.suffixes), FORMATS[0])


def is_named_like_one(path: Path) -> bool:
    """Return whether a path has the name of a checkpoint's file or index, or of a folder's."""
    if not path.is_dir():
        name = INDEX.sub("", path.name)
        return any(name.endswith(known.suffixes) for known in FORMATS)
    names = [INDEX.sub("", entry.name) for entry in path.iterdir() if entry.is_file()]
    return any(known.in_folders.match(name) for known in FORMATS for name in names)


def titles() -> str:
    """Return the formats for messages."""
    return " or ".join(f"{known.title} ({', '.join(known.suffixes)})" for known in FORMATS)
