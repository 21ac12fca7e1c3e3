"""Whether two builds find the same palettes: record with one, compare with the other.

    python benchmarks/same_results.py record before.pt     # in a checkout of the one
    python benchmarks/same_results.py compare before.pt    # in a checkout of the other

K-means must agree bit for bit, data-aware algorithms to the rounding of their sums.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig, read_checkpoint

ROUNDING = 1e-5  # relative, of decoded weights: sums of moments come in another order


class Attention(nn.Module):
    """An encoder with the operations that are no plain products."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.lstm = nn.LSTM(32, 16, batch_first=True)
        self.head = nn.Linear(16, 64)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.lstm(x)[0])


def convolutions() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.Conv2d(4, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 2, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 16),
    )  # fmt: skip
    return net, torch.randn(4, 4, 8, 8)


def matrices() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(
        nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 128), nn.GELU(), nn.Linear(128, 64)
    ), torch.randn(16, 256)


def attention() -> tuple[nn.Module, Tensor]:
    return Attention(), torch.randint(0, 64, (4, 12))


MODELS = {"convolutions": convolutions, "matrices": matrices, "attention": attention}
GROUPS = {"type": "per_grouped_channel", "group_size": 4}
COLUMNS = {"type": "per_grouped_channel", "group_size": 4, "axis": 1}

SPECS: dict[str, dict[str, Any]] = {
    **{f"{bits} bits": {"n_bits": bits} for bits in (1, 2, 3, 4, 6, 8)},
    **{f"{bits} bits, groups": {"n_bits": bits, "granularity": GROUPS} for bits in (2, 4, 8)},
    "columns": {"n_bits": 3, "granularity": COLUMNS},
    "pairs": {"n_bits": 4, "cluster_dim": 2},
    "fours": {"n_bits": 6, "cluster_dim": 4},
    "scales": {"n_bits": 4, "enable_per_channel_scale": True},
    "int8": {"n_bits": 4, "granularity": GROUPS, "lut_qspec": {"dtype": "int8"}},
    "uint8": {"n_bits": 4, "lut_qspec": {"dtype": "uint8", "qscheme": "asymmetric"}},
    "float8": {"n_bits": 4, "lut_qspec": {"dtype": "float8_e4m3fn"}},
    "pairs, int8": {"n_bits": 3, "cluster_dim": 2, "lut_qspec": {"dtype": "int8"}},
    "zeros": {"n_bits": 3, "preserve_zero": True},
}
AWARE = {
    f"{name}, {where}": {"n_bits": 3, "granularity": g, "algorithm": name}
    for name in ("gptq", "lnq")
    for where, g in (("tensor", {"type": "per_tensor"}), ("groups", GROUPS))
}


def config_of(spec: dict[str, Any], *, exact: bool = False) -> KMeansPalettizerConfig:
    entry = {
        "op_state_spec": {"weight": spec, "in_proj_weight": spec},
        "op_type_config": {
            "embedding": {"op_state_spec": {"weight": spec}},
            "lstm": {"op_state_spec": {"*": spec}},
        },
        "enable_fast_kmeans_mode": not exact and spec.get("cluster_dim", 1) == 1,
    }
    return KMeansPalettizerConfig.from_dict(
        {"kmeans_palettization_config": {"global_config": entry}}
    )


def cases() -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield what every case comes to, as the tensors of its packed checkpoint."""
    for model in MODELS:
        for name, spec in SPECS.items():
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                if dtype is not torch.float32 and name not in ("4 bits", "8 bits", "pairs", "int8"):
                    continue
                yield f"{model}: {name}, {dtype}", run(model, config_of(spec), dtype=dtype)
        for bits in (4, 8):
            yield (
                f"{model}: {bits} bits, exact",
                run(model, config_of({"n_bits": bits}, exact=True)),
            )
        for name in ("4 bits", "pairs"):
            yield f"{model}: {name}, sensitive", run(model, config_of(SPECS[name]), sensitive=True)
    for model in ("convolutions", "matrices"):
        for name, spec in AWARE.items():
            for sequential in (False, True):
                how = "in sequence" if sequential else "at once"
                found = run(model, config_of(spec), sequential=sequential)
                yield f"~ {model}: {name}, {how}", found


def run(
    name: str,
    config: KMeansPalettizerConfig,
    *,
    dtype: torch.dtype = torch.float32,
    sensitive: bool = False,
    sequential: bool | None = None,
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model, x = MODELS[name]()
    model = model.eval().to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight[:, ::7] = 0
    palettizer = KMeansPalettizer(model, config)
    if sequential is not None:
        palettizer.calibrate([x + i for i in range(3)], sequential=sequential)
    prepared = palettizer.prepare((x,))
    if sensitive:
        with palettizer.calibration_mode(loss_fn=lambda out, _: out.square().mean()) as mode:
            mode.step(prepared(x), None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        palettizer.export(path, backend="packed")
        read = read_checkpoint(path)
    found: dict[str, Tensor] = {}
    for tensor, palettized in read.palettized.items():
        found[f"{tensor} indices"] = palettized.indices
        found[f"{tensor} decoded"] = palettized.decode()
        found[f"{tensor} lut"] = palettized.lut.view(torch.uint8)
    return found


def differences(name: str, before: dict[str, Tensor], now: dict[str, Tensor]) -> list[str]:
    """Return what differs in one case, in words."""
    if before.keys() != now.keys():
        return [f"{name}: other tensors: {sorted(before.keys() ^ now.keys())}"]
    if not name.startswith("~"):
        return [
            f"{name}: {key} differs" for key in before if not torch.equal(before[key], now[key])
        ]
    out = []
    for key in (key for key in before if key.endswith("decoded")):
        gap = (before[key].double() - now[key].double()).norm() / before[key].double().norm()
        if float(gap) > ROUNDING:
            out.append(f"{name}: {key} differs by {float(gap):.2g}")
    return out


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    if asked.what == "record":
        found = dict(cases())
        torch.save(found, asked.file)
        print(f"{len(found)} cases recorded")
        return 0
    known, wrong, count = torch.load(asked.file), [], 0
    for name, now in cases():
        wrong += differences(name, known[name], now) if name in known else [f"{name}: not recorded"]
        count += 1
    print(*wrong, f"{count} cases, {len(wrong)} differences", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
