"""A model with one layer per spec, so that few conversions show much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from palette_core import (
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    PerGroupedChannelGranularity,
    QuantizationSpec,
)
from palette_core.config.spec import QuantizationScheme
from palette_core.testing._kit import Subject, fail
from palette_core.testing._probes import draw

_IN, _OUT = 64, 32
_ZEROS = 0.5  # share of them from which on a weight is stored as a sparse one
# Whatever is smaller: small weights are not, where operations take many bytes.
_SPARSE: dict[str, Any] = {"sparsity_detection_threshold": _ZEROS, "stored_form": "sparse"}


def known_specs(
    forms: Sequence[str] | None = None, more: Sequence[PalettizationSpec] = ()
) -> dict[str, PalettizationSpec]:
    """Return the specs of the kit, and an author's, by the layer they are for.

    Args:
        forms: the stored forms that a backend declares; the kit's specs of others are left out,
            which planning refuses in its place.
        more: an author's specs.
    """
    group = PerGroupedChannelGranularity
    rows, columns = group(group_size=8), group(axis=1, group_size=16)
    specs = {f"bits_{n}": PalettizationSpec(n_bits=n) for n in (1, 2, 3, 4, 6, 8)}
    specs |= {
        "groups": PalettizationSpec(granularity=rows),
        "groups_of_columns": PalettizationSpec(granularity=columns),
        "vectors": PalettizationSpec(cluster_dim=2),
        "vectors_in_groups": PalettizationSpec(n_bits=2, cluster_dim=4, granularity=rows),
        "channel_scale": PalettizationSpec(enable_per_channel_scale=True),
        "block_scales": PalettizationSpec(scale_block_size=16),
        "block_scales_of_groups": PalettizationSpec(
            n_bits=2, scale_block_size=32, granularity=rows, lut_qspec=QuantizationSpec()
        ),
        "block_scales_across_tables": PalettizationSpec(scale_block_size=32, granularity=columns),
        "int8_table": PalettizationSpec(lut_qspec=QuantizationSpec()),
        "uint8_tables": PalettizationSpec(
            n_bits=3,
            granularity=rows,
            lut_qspec=QuantizationSpec(dtype=torch.uint8, qscheme=QuantizationScheme.ASYMMETRIC),
        ),
        "float8_table": PalettizationSpec(lut_qspec=QuantizationSpec(dtype=torch.float8_e4m3fn)),
        "everything": PalettizationSpec(
            n_bits=6,
            cluster_dim=2,
            granularity=group(group_size=16),
            enable_per_channel_scale=True,
            lut_qspec=QuantizationSpec(),
        ),
        "conv": PalettizationSpec(granularity=rows),
        "conv_transpose": PalettizationSpec(granularity=rows),
        "sparse": PalettizationSpec(n_bits=3, **_SPARSE),
        "sparse_groups": PalettizationSpec(n_bits=2, **_SPARSE, granularity=columns),
        "sparse_int8_tables": PalettizationSpec(
            n_bits=2,
            **_SPARSE,
            granularity=rows,
            lut_qspec=QuantizationSpec(),
        ),
        "sparse_pairs": PalettizationSpec(n_bits=3, cluster_dim=2, **_SPARSE, granularity=rows),
        "sparse_conv": PalettizationSpec(n_bits=1, **_SPARSE, enable_per_channel_scale=True),
    }
    if forms is not None:
        specs = {name: spec for name, spec in specs.items() if {*spec.stored_forms} <= {*forms}}
    return specs | {f"author_{i}": spec for i, spec in enumerate(more)}


@final
class Layers(nn.Module):
    """One layer per spec: linear ones, save those whose names begin or end with ``conv``.

    Of weights whose names begin with ``sparse`` more than half are zero, unevenly by row. All take
    the same ``[2, 64]`` input, and their outputs are put side by side.
    """

    def __init__(self, names: Mapping[str, object]) -> None:
        super().__init__()
        for seed, name in enumerate(names):
            layer: nn.Module = nn.Linear(_IN, _OUT)
            if name.endswith("conv"):
                layer = nn.Conv2d(4, _OUT, (3, 3))
            elif name == "conv_transpose":
                layer = nn.ConvTranspose2d(4, _OUT, (3, 3))
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter.copy_(draw(*parameter.shape, seed=seed) * 0.3)
                if name.startswith("sparse"):
                    _prune(layer)
            self.add_module(name, layer)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[2, …]``."""
        outputs = []
        for name, layer in self.named_children():
            given = x.reshape(2, 4, 4, 4) if "conv" in name else x
            outputs.append(layer(given).flatten(1))
        return torch.cat(outputs, dim=1)


def _prune(layer: nn.Module) -> None:
    """Zero the lower half of each row by magnitude, and three quarters of the first rows."""
    weight = layer.get_parameter("weight")
    rows = weight.detach().flatten(1)
    rank = rows.abs().argsort(1).argsort(1)
    most = torch.full((len(rows), 1), rows.shape[1] // 2 + 1)
    most[: len(rows) // 4] += rows.shape[1] // 4
    weight.masked_fill_((rank < most).reshape(weight.shape), 0.0)


def config_of(specs: Mapping[str, PalettizationSpec]) -> KMeansPalettizerConfig:
    """Return a config that gives each layer its spec."""
    return KMeansPalettizerConfig(
        global_config=None,
        module_name_configs={
            name: ModuleKMeansPalettizerConfig(
                op_state_spec={"weight": spec}, enable_fast_kmeans_mode=False
            )
            for name, spec in specs.items()
        },
    )


def inputs_of(model: Layers) -> tuple[Tensor]:
    """Return example inputs."""
    del model
    return (draw(2, _IN, seed=11),)


def reader_of(subject: Subject) -> Any:
    """Return what reads the files of a backend, which its author hands to the kit."""
    if subject.reader is None:
        fail(
            subject,
            "needs a reader of its files: parametrize_contract(…, readers="
            f"{{{subject.entry.name!r}: read_weights}}), which returns arrays by weight names",
        )
    return subject.reader
