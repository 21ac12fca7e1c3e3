"""Palettes of palette_core and others in a few lines, for `data_free`: each returns new weights."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tasks import Task
from torch import Tensor, nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    allocate,
)
from palette_core.errors import IncompatibleShapeError
from palette_core.tensors.scales import scale_shape

SCALE_BITS = 16
_ROUNDS = 4
_BLOCKS = (3, 5, 9, 16, 24, 25, 27, 32, 40, 48, 56, 60, 64, 80, 96, 112, 120, 128, 144, 160, 192,
           224, 240, 320, 384, 480, 672, 1152)  # fmt: skip

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Given:
    """What a method palettizes.

    Attributes:
        model: may be changed.
        task: what it is of.
        modules: those to palettize, by name.
        bits: of an index.
        seed: of what is drawn.
    """

    model: nn.Module
    task: Task
    modules: dict[str, Any]
    bits: int
    seed: int


Method = Callable[[Given], tuple[Weights, int]]  # bits that all these weights take
Quantize = Callable[[Tensor, int, int], tuple[Tensor, int]]  # of n bits; how many scales take


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


def ours(**fields: Any) -> Method:
    """Palettize by palette_core; ``block`` is the size of blocks that is wanted.

    With an algorithm, layer after layer, on the batches of the task, or on what ``inputs`` makes
    of them.
    """

    def method(given: Given) -> tuple[Weights, int]:
        model, task, modules = given.model, given.task, given.modules
        block = fields.get("block")
        rest = {n: value for n, value in fields.items() if n not in ("block", "inputs")}
        names = {}
        for name, module in modules.items():
            own = {} if block is None else {"scale_block_size": block_of(module.weight, block)}
            spec = PalettizationSpec(n_bits=given.bits, **rest, **own)
            names[name] = ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec})
        config = KMeansPalettizerConfig(global_config=None, module_name_configs=names)
        palettizer = KMeansPalettizer(model, config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # groups that do not divide a layer
            if "algorithm" in fields:
                inputs = fields.get("inputs")
                batches = inputs(task.batches, given.seed) if inputs else task.batches
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


def within(block: int) -> Method:
    """Let `allocate` choose the size of each weight's blocks, without data.

    All together take as many bits as scales of 16 bits for ``block`` weights each would.
    """

    def method(given: Given) -> tuple[Weights, int]:
        sizes = {
            n: (m.weight.numel(), m.weight.numel() // block_of(m.weight, block))
            for n, m in given.modules.items()
        }
        scales = sum(blocks for _, blocks in sizes.values()) * SCALE_BITS
        count = sum(weights for weights, _ in sizes.values())
        spec = PalettizationSpec(n_bits=given.bits)
        plain = ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec})
        allocation = allocate(
            given.model,
            KMeansPalettizerConfig(
                global_config=None, module_name_configs=dict.fromkeys(given.modules, plain)
            ),
            given.task.batches[0],
            target_bpw=given.bits + scales / count,
            candidates=[{"n_bits": given.bits, "scale_block_size": size} for size in _BLOCKS],
            show_progress=False,
        )
        palettizer = KMeansPalettizer(given.model, allocation.config)
        model = palettizer.prepare(given.task.batches[0])
        assert palettizer.report is not None
        size = sum(t.palettized_bytes * 8 for t in palettizer.report.tensors)
        return {n: model.get_submodule(n).weight.detach() for n in given.modules}, size

    return method


def noise(batches: list[tuple[Tensor, ...]], seed: int) -> list[tuple[Tensor, ...]]:
    """Return batches of the same shapes that hold no data.

    Tokens are drawn evenly, but for the first and the last of a row, with which all texts begin and
    end; images and spectrograms have spectra that fall with frequency, as those of most images
    do, a mean of 0 and a deviation of 1 in each channel. Masks stay.
    """
    generator = torch.Generator().manual_seed(seed)
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

    def method(given: Given) -> tuple[Weights, int]:
        after, size = {}, 0
        for name, module in given.modules.items():
            rows = rows_of_blocks(module.weight.detach().float(), block)
            if block_of(module.weight, block) == 1:
                after[name] = module.weight.detach()
                size += rows.numel() * 32
                continue
            channels = len(module.weight)
            found, scales = quantize(rows, given.bits, channels)
            after[name] = found.reshape(module.weight.shape)
            size += rows.numel() * given.bits + scales
        return after, size

    return method


def nearest(unit: Tensor, table: Tensor) -> Tensor:
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
                d = nearest(x / (scale * stretch), table)
                product, square = (x * d).sum(1, keepdim=True), (d * d).sum(1, keepdim=True)
                gain = torch.where(product > 0, product.square() / square.clamp_min(1e-30), 0.0)
                found = torch.where(gain > most, product / square.clamp_min(1e-30), best)
                best, most = torch.where(found > 0, found, best), torch.maximum(most, gain)
            scale = keep(best).clamp_min(1e-20)
        stored = len(x) * 8 + channels * 16 if narrow else len(x) * SCALE_BITS
        return nearest(x / scale, table) * scale, stored + 2**bits * 32

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
