"""Parts of a model in files of their own, run one after the other, for tests of export backends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palette_core.errors import ContractError
from palette_core.palettizer.parts.files import MANIFEST, read_manifest

Run = Callable[[Path, list[Any]], Sequence[Any]]


def run_chain(folder: Path, given: Mapping[str, Any], run: Run) -> dict[str, Sequence[Any]]:
    """Run the parts of a folder as its manifest says that they are connected.

    Args:
        folder: as ``export(…, parts=…)`` has written it.
        given: inputs of the model, by name.
        run: runs a file on inputs in the order of the part's, and returns its outputs in order.

    Returns:
        The outputs of each part, in order.

    Raises:
        BackendError: there is no manifest.
        ContractError: the folder holds other files than the manifest lists, or an input is one
            that no file computes.
    """
    told = read_manifest(folder)
    listed = {MANIFEST, *(name for part in told["parts"] for name in part["files"])}
    found = {file.name for file in folder.iterdir()}
    if found != listed:
        raise ContractError(f"{folder} holds {sorted(found)}, and lists {sorted(listed)}")
    results: dict[str, Sequence[Any]] = {}
    for part in told["parts"]:
        inputs = []
        for each in part["inputs"] or ():
            source = each["from"]
            if source is None:
                raise ContractError(f"{each['name']} of {part['name']!r} is computed by no file")
            inputs.append(
                given[source["model"]]
                if "model" in source
                else results[source["part"]][source["output"]]
            )
        results[part["name"]] = run(folder / part["files"][0], inputs)
    return results


class Block(nn.Module):
    """Layer of a `Chain`."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return float32 [n, 64] for ``x`` of that shape and ``scale`` [n, 1]."""
        scaled: Tensor = x + self.down(self.up(x).relu() * scale)
        return scaled


class Chain(nn.Module):
    """A tied embedding, layers in a list, and an argument that all of them take."""

    ids = torch.tensor([3, 1, 4, 1], dtype=torch.int32)
    scale = torch.linspace(0.5, 1.5, 4)[:, None]

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, 64)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 256, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, scale: Tensor) -> Tensor:
        """Return float32 [n, 256] for int32 ``ids`` [n] and ``scale`` [n, 1]."""
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, scale=scale)
        logits: Tensor = self.head(self.norm(x))
        return logits
