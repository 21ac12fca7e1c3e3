"""A model in parts, and a backend that writes programs of torch, for tests of parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from palette_core import ExportPart, KMeansPalettizer, KMeansPalettizerConfig
from palette_core.errors import BackendError
from palette_core.plugins import Backend, ExportBackendEntry, NoOptions, Refusal

IDS, SCALE = (
    torch.tensor([3, 1, 4, 1]),
    torch.linspace(0.5, 1.5, 4)[:, None].expand(4, 32).contiguous(),
)


class Programs(Backend):
    """Writes what torch.export makes of a model, which torch can load and run."""

    def check_support(self, facts: Any) -> None:
        return None

    def check_place(self, path: Path) -> None:
        return None

    def check_program(self, model: nn.Module, inputs: Any, dynamic_shapes: Any = None) -> list[Any]:
        names = [name for name, _ in model.named_parameters()]
        found = self.refuses and any(name.endswith(self.refuses) for name in names)
        return [Refusal("no relu")] if found else []

    def finalize(self, model: nn.Module, palettized: Any) -> nn.Module:
        return model

    def export(self, model: nn.Module, inputs: Any, path: Path, dynamic_shapes: Any = None) -> Path:
        if self.fails_at == path.stem:
            raise BackendError("no more")
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
        with torch.no_grad():
            program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes)
        torch.export.save(program, path)
        return path

    fails_at = refuses = ""


@pytest.fixture
def programs(register: Any) -> Any:
    made = Programs()
    entry = ExportBackendEntry(
        name="programs", summary="programs of torch", interface=1, options=NoOptions,
        factory=lambda _: made, suffix=".pt2",
    )  # fmt: skip
    register(entry)
    return made


class Block(nn.Module):
    """A layer with a state, arguments by name, and two results."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.register_buffer("kept", torch.zeros(16))

    def forward(
        self, x: Tensor, scale: Tensor, *, mask: Tensor | None = None, times: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        assert mask is None
        self.kept.copy_(self.kept + x.mean(0))
        return x + self.down(self.up(x).relu() * scale) * times + self.kept, scale * 1.5


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.layers = nn.ModuleList(Block() for _ in range(4))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 32, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, scale: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x, scale = layer(x, scale, mask=None, times=0.5)
        return self.head(self.norm(x))


PARTS: dict[str, Any] = {
    "embeddings": "embed",
    "first": "layers[:2]",
    "rest": ["layers[2:]", "norm"],
    "head": ExportPart("head"),
}


def prepared(model: nn.Module | None = None) -> tuple[nn.Module, KMeansPalettizer]:
    torch.manual_seed(0)
    model = (Whole() if model is None else model).train()
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig.presets.w4_all())
    palettizer.prepare((IDS, SCALE))
    return model, palettizer
