"""Palettes of other projects, for `data_free`: NNCF's fixed and fitted code books, coreai-opt's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from palettes import SCALE_BITS, Given, Method, Weights, block_of, nearest
from tasks import Task
from torch import Tensor, nn

CB4 = (-3.5, -2.5, -1.875, -1.375, -1.0, -0.625, -0.3125, 0.0,
       0.28125, 0.5625, 0.875, 1.125, 1.5, 2.0, 2.5, 3.5)  # fmt: skip
_AT_ONCE = 30  # layers, for the sake of memory


def cb4(x: Tensor, bits: int, channels: int) -> tuple[Tensor, int]:
    """Return the nearest entries of NNCF's table, by the largest magnitude of each block."""
    del bits, channels
    table = torch.tensor(CB4)
    scale = x.abs().amax(1, keepdim=True) / table.max()
    scale = torch.where(scale < torch.finfo().eps, torch.finfo().eps, scale)
    return nearest(x / scale, table) * scale, len(x) * SCALE_BITS


def nncf_adaptive(block: int) -> Method:
    """Fit a code book to each layer by NNCF's ADAPTIVE_CODEBOOK, for the inputs that it reads.

    NNCF takes models of OpenVINO only, and wants data: each layer is a product, with what the layer
    reads of the first batch, and layers of the same shape make a model, as NNCF compiles programs
    for each shape anew. Layers that are no products of matrices read noise.
    """

    def method(given: Given) -> tuple[Weights, int]:
        bits, read = given.bits, _inputs_of(given.model, given.task, given.modules)
        after, size, alike = {}, 0, {}
        for name, module in given.modules.items():
            rows = module.weight.detach().float().flatten(1)
            group = block_of(module.weight, block)
            if group == 1:
                after[name] = module.weight.detach()
                size += rows.numel() * 32
                continue
            alike.setdefault((rows.shape, group), []).append((name, rows))
            size += rows.numel() // group * SCALE_BITS + 2**bits * 8 + rows.numel() * bits
        for (_, group), layers in alike.items():
            for at in range(0, len(layers), _AT_ONCE):
                some = layers[at : at + _AT_ONCE]
                found = _adapted(dict(some), read, bits, group)
                after |= {n: w.reshape(given.modules[n].weight.shape) for n, w in found.items()}
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


def _adapted(
    layers: dict[str, Tensor], read: dict[str, Tensor], bits: int, group: int
) -> dict[str, Tensor]:
    """Compress layers of one shape, each a product of a model of its own inputs."""
    import nncf
    import numpy as np
    import openvino as ov
    from nncf.quantization.advanced_parameters import (
        AdvancedAdaptiveCodebookParameters,
        AdvancedCompressionParameters,
    )
    from openvino import opset13 as op

    given, inputs, products = [], [], []
    for name, rows in layers.items():
        wide = rows.shape[1]
        noise = torch.randn(128, wide, generator=torch.Generator().manual_seed(0))
        inputs.append(read.get(name, noise).numpy())
        given.append(op.parameter([-1, wide], np.float32))
        products.append(op.matmul(given[-1], op.constant(rows.numpy()), False, True))
    samples = min(len(rows) for rows in inputs)
    made = nncf.compress_weights(
        ov.Model([op.result(product) for product in products], given),
        mode=nncf.CompressWeightsMode.ADAPTIVE_CODEBOOK,
        group_size=group, ratio=1.0, all_layers=True,
        dataset=nncf.Dataset([[rows[i : i + 1] for rows in inputs] for i in range(samples)]),
        advanced_parameters=AdvancedCompressionParameters(
            adaptive_codebook_params=AdvancedAdaptiveCodebookParameters(num_elements=2**bits)
        ),
    )  # fmt: skip
    weights = [result.input_value(0).get_node().input_value(1) for result in made.get_results()]
    decoding = ov.Model([op.result(weight) for weight in weights], [])
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    found = ov.Core().compile_model(decoding, "CPU", exact)([])
    return {name: torch.from_numpy(np.array(found[at])) for at, name in enumerate(layers)}


def coreai_opt(group: int) -> Method:
    """Palettize by coreai-opt, a table for each group of output channels."""

    def method(given: Given) -> tuple[Weights, int]:
        import logging

        import coreai_opt.palettization as peer
        import coreai_opt.palettization.spec as grain

        model, modules, bits = given.model, given.modules, given.bits
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
        made = peer.KMeansPalettizer(model, config).prepare(given.task.batches[0])
        after = {n: made.get_submodule(n).weight.detach() for n in modules}
        fits = {n: len(w) % group == 0 for n, w in after.items()}
        return after, sum(
            count * bits + len(after[n]) // group * 2**bits * 32 if fits[n] else count * 32
            for n, count in before.items()
        )

    return method


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
