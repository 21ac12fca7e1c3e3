"""Small models, configs and judges that the tests of the palettizer share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    OpKMeansPalettizerConfig,
    PalettizationSpec,
    QuantizationSpec,
)
from palette_core.storage.sites import palette_sites


def weight_config(seed: int = 0, *, fast: bool = True, **spec: Any) -> KMeansPalettizerConfig:
    """Every default weight by one spec, 2 bits where it does not say."""
    return KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec={
                key: PalettizationSpec(**{"n_bits": 2, **spec})
                for key in ("weight", "in_proj_weight")
            },
            enable_fast_kmeans_mode=fast,
        ),
        seed=seed,
    )


INT8 = QuantizationSpec(dtype="int8")
UINT8 = QuantizationSpec(dtype="uint8", qscheme="asymmetric")
E4M3 = QuantizationSpec(dtype="float8_e4m3fn")
QUANTIZED = {"int8": INT8, "uint8": UINT8, "e4m3": E4M3}


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


MLP_INPUTS = (torch.linspace(-1, 1, 24).reshape(3, 8),)


class Tied(nn.Module):
    """An embedding whose weight is also the output projection's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(16, 8)
        self.middle = nn.Linear(8, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self.embed(tokens))))


TOKENS = (torch.arange(6).reshape(2, 3),)


class Everything(nn.Module):
    """Linear, convolutions, attention, recurrent layers, a root parameter, norms and buffers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.scale = nn.Parameter(torch.randn(8, 8))
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm1d(8)
        self.up = nn.ConvTranspose1d(8, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.lstm = nn.LSTM(8, 4, bidirectional=True, batch_first=True)
        self.head = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.linear(x, self.scale)
        x = self.up(torch.relu(self.bn(self.conv(x.mT)))).mT
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(self.lstm(x)[0])


EVERYTHING_INPUTS = (torch.sin(torch.arange(80.0)).reshape(2, 5, 8),)


def everything_config(*, fast: bool = True, **spec: Any) -> KMeansPalettizerConfig:
    """As `weight_config`, with the root's parameter and the recurrent weights too."""
    config = weight_config(fast=fast, **spec)
    states = {"*": PalettizationSpec(**{"n_bits": 2, **spec})}
    config.set_module_type(
        nn.LSTM,
        ModuleKMeansPalettizerConfig(
            op_state_spec={
                name: states["*"]
                for way in ("", "_reverse")
                for name in (f"weight_ih_l0{way}", f"weight_hh_l0{way}")
            },
            enable_fast_kmeans_mode=fast,
        ),
    )
    config.global_config.op_type_config = {
        "linear": OpKMeansPalettizerConfig(
            op_state_spec={"weight": states["*"], "scale": states["*"]}
        )
    }
    return config


def everything_prepared(**spec: Any) -> tuple[KMeansPalettizer, nn.Module]:
    palettizer = KMeansPalettizer(Everything().eval(), everything_config(**spec))
    return palettizer, palettizer.prepare(EVERYTHING_INPUTS)


EVERYTHING_NAMES = {
    "scale",
    "conv.weight",
    "up.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "lstm.weight_ih_l0",
    "lstm.weight_hh_l0",
    "lstm.weight_ih_l0_reverse",
    "lstm.weight_hh_l0_reverse",
    "head.weight",
}


def prepared_mlp(**spec: Any) -> tuple[KMeansPalettizer, nn.Module]:
    palettizer = KMeansPalettizer(mlp(), weight_config(**spec))
    return palettizer, palettizer.prepare(MLP_INPUTS).eval()


def decoded_weights(model: nn.Module) -> dict[str, Tensor]:
    """The palettized weights, decoded from indices and tables and nothing else."""
    sites = palette_sites(model)
    return {name: site.palette.palettized().decode() for site in sites for name in site.names}


def overwritten(dense: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A dense model with some of its weights overwritten: what palettizing must compute."""
    with torch.no_grad():
        for name, value in weights.items():
            prefix, _, state = name.rpartition(".")
            getattr(dense.get_submodule(prefix), state).copy_(value)
    return dense


def squared_error(a: Tensor, b: Tensor, weights: Tensor | float = 1.0) -> float:
    difference = a.detach().double() - b.detach().double()
    return float((weights * difference.square()).sum())


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that a failed prepare must leave alone."""
    return {
        "classes": [type(m) for m in model.modules()],
        "modules": [(name, id(m)) for name, m in model.named_modules(remove_duplicate=False)],
        "parameters": [(name, id(p)) for name, p in model.named_parameters(remove_duplicate=False)],
        "buffers": [(name, id(b)) for name, b in model.named_buffers(remove_duplicate=False)],
        "values": {name: t.clone() for name, t in model.state_dict().items()},
        "order": list(model.state_dict()),
        "training": [m.training for m in model.modules()],
        "grads": [p.requires_grad for p in model.parameters()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._state_dict_hooks))
            for m in model.modules()
        ],
        "flat": [
            [id(w) for w in m._flat_weights] for m in model.modules() if isinstance(m, nn.RNNBase)
        ],
    }


def assert_untouched(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    values, kept = after.pop("values"), dict(before)
    expected = kept.pop("values")
    assert after == kept
    for name, value in expected.items():
        assert torch.equal(value, values[name]), name
    assert not any(hasattr(m, "parametrizations") for m in model.modules())


def ideal_bits(count: int, n_bits: int, tables: int = 1, entry_bits: int = 32) -> int:
    return count * n_bits + tables * 2**n_bits * entry_bits


def dense_bits(model: nn.Module) -> int:
    return sum(math.prod(t.shape) * t.element_size() * 8 for t in model.state_dict().values())
