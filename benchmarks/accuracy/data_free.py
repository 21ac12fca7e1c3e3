"""Palettes without data: error of weights, and of models, beside NNCF's fixed code book.

    PALETTE_LOADERS=folder python benchmarks/accuracy/data_free.py [--models minilm effnet]
        [--bits 4 3] [--rows 'blocks of 64' 'CB4, blocks of 64'] [--no-judging]

Every method palettizes the same weights, and counts as many bits for scales as it stores: one of
16 for each block. A block is as large as is asked for, or the largest smaller number that divides
the inputs of a channel. *CB4* is the fixed table of NNCF's mode of that name with factors from the
largest magnitudes, in our own words; ``--check`` says whether NNCF, where it is installed, makes
the same of a weight. *scales of 8 bits* are shares of one float per channel;
*symmetric* and *with zero* tables are fitted like the others, and then held to their form. *On
noise* is calibrated without data: see `noise`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from methods import _TYPES
from tasks import TASKS, Task
from torch import Tensor, nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    QuantizationSpec,
)
from palette_core.errors import IncompatibleShapeError
from palette_core.tensors.scales import scale_shape

CB4 = (-3.5, -2.5, -1.875, -1.375, -1.0, -0.625, -0.3125, 0.0,
       0.28125, 0.5625, 0.875, 1.125, 1.5, 2.0, 2.5, 3.5)  # fmt: skip
_SCALE_BITS = 16
_ROUNDS = 4

Weights = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seed", type=int, default=0, help="of the data that lnq is calibrated on")
    parser.add_argument("--no-judging", action="store_true", help="errors of weights alone")
    parser.add_argument("--check", action="store_true", help="compare CB4 with NNCF, and end")
    args = parser.parse_args()
    if args.check:
        return check()
    for name in args.models:
        task = TASKS[name](args.seed)
        dense = float("nan") if args.no_judging else task.judge(task.model)
        print(f"{name}, {task.measure} (dense {dense:.4f})")
        for bits in args.bits:
            for row in args.rows:
                if bits != 4 and row.startswith("CB4"):
                    continue
                _print(task, name, row, bits, judging=not args.no_judging)
    return None


def _print(task: Task, name: str, row: str, bits: int, *, judging: bool) -> None:
    model = copy.deepcopy(task.model)
    modules = dict(_palettized(model, name))
    before = {n: m.weight.detach().clone() for n, m in modules.items()}
    after, size = ROWS[row](model, task, modules, bits)
    off = sum(float((after[n] - w).double().square().sum()) for n, w in before.items())
    norm = sum(float(w.double().square().sum()) for w in before.values())
    count = sum(w.numel() for w in before.values())
    value = float("nan")
    if judging:
        judged = copy.deepcopy(task.model)
        with torch.no_grad():
            for n, module in _palettized(judged, name):
                module.weight.copy_(after[n])
        value = task.judge(judged)
    error = math.sqrt(off / norm)
    print(f"  {bits} bits {row:34s} {size / count:6.3f} bpw  error {error:.4f}  {value:10.4f}",
          flush=True)  # fmt: skip


def _palettized(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    wanted = {text.rpartition(".")[2] for text in _TYPES[name]}
    for path, module in model.named_modules():
        if type(module).__name__ in wanted:
            yield path, module


def block_of(weight: Tensor, wanted: int) -> int:
    """Return the largest size of blocks that are a regular grid, up to what is wanted; or 1."""
    for size in range(min(wanted, weight[0].numel()), 1, -1):
        with contextlib.suppress(IncompatibleShapeError):
            scale_shape(tuple(weight.shape), 0, size)
            return size
    return 1


def rows_of_blocks(weight: Tensor, wanted: int) -> Tensor:
    """Return a weight with a block in each row."""
    return weight.reshape(-1, block_of(weight, wanted))


# --- methods ------------------------------------------------------------------------------------

Quantize = Callable[[Tensor, int, int], tuple[Tensor, int]]  # of n bits; how many scales take
Method = Callable[[nn.Module, Task, dict[str, Any], int], tuple[Weights, int]]


def ours(**fields: Any) -> Method:
    """Palettize by palette_core; ``block`` is the size of blocks that is wanted.

    With an algorithm, layer after layer, on the batches of the task, or on what ``inputs`` makes
    of them.
    """

    def method(
        model: nn.Module, task: Task, modules: dict[str, Any], bits: int
    ) -> tuple[Weights, int]:
        block = fields.get("block")
        rest = {n: value for n, value in fields.items() if n not in ("block", "inputs")}
        names = {}
        for name, module in modules.items():
            own = {} if block is None else {"scale_block_size": block_of(module.weight, block)}
            spec = PalettizationSpec(n_bits=bits, **rest, **own)
            names[name] = ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec})
        config = KMeansPalettizerConfig(global_config=None, module_name_configs=names)
        palettizer = KMeansPalettizer(model, config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # groups that do not divide a layer
            if "algorithm" in fields:
                batches = fields.get("inputs", list)(task.batches)
                palettizer.calibrate(batches, sequential=True)
            model = palettizer.prepare(task.batches[0])
        after = {n: model.get_submodule(n).weight.detach() for n in modules}
        assert palettizer.report is not None
        sizes = {
            t.name.removesuffix(".weight"): t.palettized_bytes * 8
            for t in palettizer.report.tensors
        }
        dense = {n: w.numel() * 32 for n, w in after.items()}
        return after, sum({**dense, **sizes}.values())

    return method


def noise(batches: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """Return batches of the same shapes that hold no data.

    Tokens are drawn evenly, but for the first and the last of a row, with which all texts begin and
    end; images and spectrograms have spectra that fall with frequency, as those of most images
    do, a mean of 0 and a deviation of 1 in each channel. Masks stay.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = max((int(x.max()) for batch in batches for x in batch if _tokens(x)), default=0)

    def drawn(given: Tensor) -> Tensor:
        if _tokens(given):
            made = torch.randint(vocabulary, given.shape, generator=generator)
            made[:, [0, -1]] = given[:, [0, -1]]
            return made
        return _falling(given.shape, generator) if given.is_floating_point() else given

    return [tuple(drawn(x) for x in batch) for batch in batches]


def _tokens(given: Tensor) -> bool:
    return given.dtype is torch.int64


def _falling(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return pictures whose amplitudes fall as the inverse of frequency, channels much alike."""
    height, width = shape[-2:]
    down, across = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    frequency = (down.square() + across.square()).sqrt().clamp_min(1 / max(height, width))
    shared = torch.randn((shape[0], *[1] * (len(shape) - 3), *shape[-2:]), generator=generator)
    own = torch.randn(shape, generator=generator)
    made = torch.fft.irfft2(torch.fft.rfft2(shared + 0.3 * own) / frequency, s=(height, width))
    made = made - made.mean((-2, -1), keepdim=True)
    return made / made.std((-2, -1), keepdim=True)


def of_rows(block: int, quantize: Quantize) -> Method:
    """Quantize each weight with a block in each row."""

    def method(
        model: nn.Module, task: Task, modules: dict[str, Any], bits: int
    ) -> tuple[Weights, int]:
        after, size = {}, 0
        for name, module in modules.items():
            rows = rows_of_blocks(module.weight.detach().float(), block)
            if block_of(module.weight, block) == 1:
                after[name] = module.weight.detach()
                size += rows.numel() * 32
                continue
            channels = len(module.weight)
            found, scales = quantize(rows, bits, channels)
            after[name] = found.reshape(module.weight.shape)
            size += rows.numel() * bits + scales
        return after, size

    return method


def cb4(x: Tensor, bits: int, channels: int) -> tuple[Tensor, int]:
    """Return the nearest entries of NNCF's table, by the largest magnitude of each block."""
    del bits, channels
    table = torch.tensor(CB4)
    scale = x.abs().amax(1, keepdim=True) / table.max()
    scale = torch.where(scale < torch.finfo().eps, torch.finfo().eps, scale)
    return _nearest(x / scale, table) * scale, len(x) * _SCALE_BITS


def nncf_adaptive(block: int) -> Method:
    """Fit a code book to each layer by NNCF's ADAPTIVE_CODEBOOK, for the inputs that it reads.

    NNCF takes models of OpenVINO only, and wants data: each layer is one of a single product, with
    what the layer reads of the first batch. Layers that are no products of matrices read noise.
    """

    def method(
        model: nn.Module, task: Task, modules: dict[str, Any], bits: int
    ) -> tuple[Weights, int]:
        read = _inputs_of(model, task, modules)
        after, size = {}, 0
        for name, module in modules.items():
            rows = module.weight.detach().float().flatten(1)
            group = block_of(module.weight, block)
            if group == 1:
                after[name] = module.weight.detach()
                size += rows.numel() * 32
                continue
            found = _adapted(rows, read.get(name), bits, group)
            after[name] = found.reshape(module.weight.shape)
            size += rows.numel() // group * _SCALE_BITS + 2**bits * 8 + rows.numel() * bits
        return after, size

    return method


def _inputs_of(model: nn.Module, task: Task, modules: dict[str, Any]) -> dict[str, Tensor]:
    """Return 128 rows that each linear layer reads of the first batch."""
    read = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].detach().flatten(0, -2)
            read[name] = rows[:: max(1, len(rows) // 128)][:128].clone()

        return hook

    hooks = [
        module.register_forward_pre_hook(keep(name))
        for name, module in modules.items()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        model(*task.batches[0])
    for hook in hooks:
        hook.remove()
    return read


def _adapted(rows: Tensor, inputs: Tensor | None, bits: int, group: int) -> Tensor:
    import nncf
    import numpy as np
    import openvino as ov
    from nncf.quantization.advanced_parameters import (
        AdvancedAdaptiveCodebookParameters,
        AdvancedCompressionParameters,
    )
    from openvino import opset13 as op

    if inputs is None:
        inputs = torch.randn(128, rows.shape[1], generator=torch.Generator().manual_seed(0))
    given = op.parameter([-1, rows.shape[1]], np.float32)
    product = op.matmul(given, op.constant(rows.numpy()), False, True)
    made = nncf.compress_weights(
        ov.Model([op.result(product)], [given]),
        mode=nncf.CompressWeightsMode.ADAPTIVE_CODEBOOK,
        group_size=group, ratio=1.0, all_layers=True,
        dataset=nncf.Dataset([row[None].numpy() for row in inputs]),
        advanced_parameters=AdvancedCompressionParameters(
            adaptive_codebook_params=AdvancedAdaptiveCodebookParameters(num_elements=2**bits)
        ),
    )  # fmt: skip
    (product,) = (node for node in made.get_ops() if node.get_type_name() == "MatMul")
    weight = ov.Model([op.result(product.input_value(1))], [])
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    return torch.from_numpy(np.array(ov.Core().compile_model(weight, "CPU", exact)([])[0]))


def coreai_opt(group: int) -> Method:
    """Palettize by coreai-opt, a table for each group of output channels."""

    def method(
        model: nn.Module, task: Task, modules: dict[str, Any], bits: int
    ) -> tuple[Weights, int]:
        import logging

        import coreai_opt.palettization as peer
        import coreai_opt.palettization.spec as grain

        logging.getLogger("coreai_opt").setLevel(logging.ERROR)
        grouped = grain.PerGroupedChannelGranularity(axis=0, group_size=group)
        spec = peer.PalettizationSpec(n_bits=bits, granularity=grouped)
        wanted = peer.ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec})
        layers = nn.Linear | nn.Conv1d | nn.Conv2d
        names = {
            name: wanted if name in modules else None
            for name, module in model.named_modules()
            if name and (isinstance(module, layers) or not list(module.children()))
        }
        config = peer.KMeansPalettizerConfig(global_config=None, module_name_configs=names)
        before = {n: m.weight.numel() for n, m in modules.items()}
        made = peer.KMeansPalettizer(model, config).prepare(task.batches[0])
        after = {n: made.get_submodule(n).weight.detach() for n in modules}
        fits = {n: len(w) % group == 0 for n, w in after.items()}
        return after, sum(
            count * bits + len(after[n]) // group * 2**bits * 32 if fits[n] else count * 32
            for n, count in before.items()
        )

    return method


def _nearest(unit: Tensor, table: Tensor) -> Tensor:
    return table[torch.bucketize(unit, (table[1:] + table[:-1]) / 2)]


def fitted(form: Callable[[Tensor], Tensor] | None = None, *, narrow: bool = False) -> Quantize:
    """Fit scales and a table, as simply as that can be said.

    Args:
        form: what a table has to be.
        narrow: keep factors in 8 bits, with one of 16 for each channel.
    """
    from palette_core.builtins.clusterers.kmeans1d.clusterer import KMeans1d
    from palette_core.plugins import ClusterProblem

    stretches = torch.tensor([1.0, 0.84, 0.92, 1.06, 1.12])

    def quantize(x: Tensor, bits: int, channels: int) -> tuple[Tensor, int]:
        def keep(scale: Tensor) -> Tensor:
            return in_8_bits(scale, channels) if narrow else scale.half().float()

        scale = keep(x.abs().amax(1, keepdim=True)).clamp_min(1e-20)
        for _ in range(_ROUNDS):
            count = (scale / scale.max()).square().expand_as(x)
            problem = ClusterProblem(
                (x / scale).reshape(1, -1, 1), 2**bits, importance=count.reshape(1, -1, 1)
            )
            table = KMeans1d().fit(problem).lut[0, :, 0].float()
            table = table if form is None else form(table)
            most = torch.zeros_like(scale)
            best = scale
            for stretch in stretches:
                d = _nearest(x / (scale * stretch), table)
                product, square = (x * d).sum(1, keepdim=True), (d * d).sum(1, keepdim=True)
                gain = torch.where(product > 0, product.square() / square.clamp_min(1e-30), 0.0)
                found = torch.where(gain > most, product / square.clamp_min(1e-30), best)
                best, most = torch.where(found > 0, found, best), torch.maximum(most, gain)
            scale = keep(best).clamp_min(1e-20)
        stored = len(x) * 8 + channels * 16 if narrow else len(x) * _SCALE_BITS
        return _nearest(x / scale, table) * scale, stored + 2**bits * 32

    return quantize


def symmetric(table: Tensor) -> Tensor:
    """Return entries of which each has its negative."""
    return (table - table.flip(0)) / 2


def with_zero(table: Tensor) -> Tensor:
    """Return entries of which the one nearest to zero is zero."""
    return torch.where(torch.arange(len(table)) == table.abs().argmin(), 0.0, table)


def in_8_bits(scale: Tensor, channels: int) -> Tensor:
    """Return factors as 255ths of the largest of their channel."""
    cut = scale.reshape(channels, -1)
    most = cut.amax(1, keepdim=True).half().float().clamp_min(1e-20)
    return ((cut / most * 255).round().clamp(1, 255) / 255 * most).reshape(scale.shape)


ROWS: dict[str, Method] = {
    "groups of 16": ours(granularity={"type": "per_grouped_channel", "group_size": 16}),
    "per channel": ours(enable_per_channel_scale=True),
    "blocks of 128": ours(block=128),
    "blocks of 64, range": ours(block=64, scale_fit="range"),
    "blocks of 64": ours(block=64),
    "blocks of 32": ours(block=32),
    "CB4, blocks of 128": of_rows(128, cb4),
    "CB4, blocks of 64": of_rows(64, cb4),
    "NNCF's ADAPTIVE_CODEBOOK, blocks of 128": nncf_adaptive(128),
    "NNCF's ADAPTIVE_CODEBOOK, blocks of 64": nncf_adaptive(64),
    "coreai-opt, groups of 16": coreai_opt(16),
    "lnq in sequence, groups of 16": ours(
        algorithm="lnq", granularity={"type": "per_grouped_channel", "group_size": 16}
    ),
    "lnq in sequence, per channel": ours(algorithm="lnq", enable_per_channel_scale=True),
    "lnq in sequence, blocks of 64": ours(algorithm="lnq", block=64),
    "lnq in sequence on noise, blocks of 64": ours(algorithm="lnq", block=64, inputs=noise),
    "blocks of 64, int8 table": ours(block=64, lut_qspec=QuantizationSpec(dtype=torch.int8)),
    "blocks of 64, simply": of_rows(64, fitted()),
    "blocks of 64, symmetric table": of_rows(64, fitted(symmetric)),
    "blocks of 64, table with zero": of_rows(64, fitted(with_zero)),
    "blocks of 32, scales of 8 bits": of_rows(32, fitted(narrow=True)),
}


def check() -> None:
    """Print how far CB4 here and NNCF's are from each other on a normal weight."""
    from nncf.parameters import CompressWeightsMode
    from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
    from nncf.quantization.algorithms.weight_compression.constants import CB4_QUANTILES
    from nncf.quantization.algorithms.weight_compression.weight_lowering import (
        float_quantize_dequantize_weight,
    )
    from nncf.tensor import Tensor as NncfTensor

    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    config = WeightCompressionConfig(
        CompressWeightsMode.CB4, 64, codebook_values=NncfTensor(CB4_QUANTILES)
    )
    theirs = float_quantize_dequantize_weight(NncfTensor(weight.numpy()), config, (1,))
    mine = cb4(weight.reshape(-1, 64), 4, 256)[0].reshape(weight.shape)
    found = torch.from_numpy(theirs.data).reshape(weight.shape)
    print("largest difference", float((found - mine).abs().max()))


if __name__ == "__main__":
    main()
