"""Which weights a deployment target cannot store, said while planning."""

from __future__ import annotations

from typing import Any

import coremltools as ct
import torch
from torch import nn

from coreml_backend.folding import size_with_a_table_per_channel
from coreml_backend_hooks import CoreMLOptions
from palette_core.errors import BackendError
from palette_core.plugins import (
    PalettizationSpec,
    PerTensorGranularity,
    QuantizationSpec,
    Refusal,
    TensorFacts,
)
from palette_core.storage import palette_sites
from palette_core.tensors import dtype_name

_BITS_BEFORE_IOS18 = (1, 2, 4, 6, 8)


def generation(options: CoreMLOptions) -> Any:
    """Return the target as coremltools' enumeration has it: siblings of one year are equal."""
    return getattr(ct.target, options.deployment_target)


def refuse(facts: TensorFacts, options: CoreMLOptions) -> Refusal | None:
    """Return why a weight cannot be stored exactly, and the nearest spec that can; else None."""
    plain = facts.op_type == "prelu" or (
        len(facts.shape) == 1 and (facts.op_type or "").startswith("conv_transpose")
    )
    if plain:
        return Refusal(
            f"coremltools wants {'the slope' if facts.op_type == 'prelu' else 'the bias'} of "
            f"{facts.op_type} as plain numbers; leave it out of the config"
        )
    if facts.dtype not in (torch.float32, torch.float16):
        return Refusal(
            f"Core ML has no {dtype_name(facts.dtype)}; convert the model with .float() or .half() "
            "before it is prepared"
        )
    found = _first_obstacle(facts, facts.spec, options)
    if found is None:
        return None
    reason, spec = found
    # One obstacle may hide another.
    while (again := _first_obstacle(facts, spec, options)) is not None:
        spec = again[1]
    return Refusal(reason, spec)


def check_stored(model: nn.Module, options: CoreMLOptions) -> None:
    """Refuse palettized weights that came by no plan, out of a checkpoint, as planning would.

    What a target cannot store is refused where it is stored.

    Raises:
        BackendError: naming the weight.
    """
    for site in palette_sites(model):
        palettized = site.palette.palettized()
        dtype, table = palettized.dtype, palettized.lut.dtype
        if dtype not in (torch.float32, torch.float16):
            raise BackendError(
                f"{site.name}: Core ML has no {dtype_name(dtype)}; convert the model with .float() "
                "or .half() before it is prepared"
            )
        exact = options.compute_precision == "float32"
        if dtype == torch.float16 and palettized.lut_scale is not None and exact:
            raise BackendError(f"{site.name}: {_COARSE}; {_ROUNDS}, or {_FLOATS}")
        if palettized.mask is not None and palettized.cluster_dim > 1:
            raise BackendError(f"{site.name} has vectors of nonzeros: {_SCALARS}")
        if table.is_floating_point and table.itemsize == 1:
            raise BackendError(f"{site.name}: Core ML has no tables of {dtype_name(table)}")


_SCALARS = "Core ML has an index for every nonzero, not one for several"
_COARSE = (
    "tables of 8-bit integers decode in float32, and Core ML would not round their entries to the "
    "weight's float16"
)
_ROUNDS, _FLOATS = "compute_precision float16 rounds", "keep the tables floats"


def _first_obstacle(
    facts: TensorFacts, spec: PalettizationSpec, options: CoreMLOptions
) -> tuple[str, PalettizationSpec] | None:
    """Return what stands in the way of ``spec``, and ``spec`` without it."""
    quantized = spec.lut_qspec
    if quantized is not None and quantized.dtype not in (torch.int8, torch.uint8):
        return (
            f"Core ML has no tables of {dtype_name(quantized.dtype)}",
            _with(spec, lut_qspec=QuantizationSpec(dtype="int8")),
        )
    target, name = generation(options), options.deployment_target
    sparse = (
        None if spec.sparsity_detection_threshold is None else _obstacle_to_zeros(spec, options)
    )
    if sparse is not None:
        return sparse
    if target < ct.target.iOS18:
        return _obstacle_before_ios18(facts, spec, name)
    # Operations of a program that exists keep their precision.
    exact = options.compute_precision == "float32" or facts.in_program
    if quantized is not None and facts.dtype == torch.float16 and exact:
        what = _FLOATS if facts.in_program else f"{_ROUNDS}, or {_FLOATS}"
        return f"{_COARSE}; {what}", _with(spec, lut_qspec=None)
    if spec.is_scaled:
        return _obstacle_to_scales(facts, spec, options)
    return None


def _obstacle_to_zeros(
    spec: PalettizationSpec, options: CoreMLOptions
) -> tuple[str, PalettizationSpec] | None:
    if generation(options) < ct.target.iOS18:
        name = options.deployment_target
        return (
            f"sparse weights: {name} cannot store them; deployment_target iOS18 can",
            spec.stored_as("indices"),
        )
    if spec.cluster_dim > 1:
        return f"vectors of a sparse weight: {_SCALARS}", _with(spec, cluster_dim=1)
    return None


def _obstacle_to_scales(
    facts: TensorFacts, spec: PalettizationSpec, options: CoreMLOptions
) -> tuple[str, PalettizationSpec] | None:
    if generation(options) >= ct.target.iOS26:
        return _obstacle_to_folding(facts, spec, options)
    if spec.scale_block_size is not None:
        return (
            f"{options.deployment_target} scales tables, not weights: scales per block of inputs "
            "take deployment_target iOS26",
            _with(spec, scale_block_size=None, enable_per_channel_scale=True),
        )
    why = f"{options.deployment_target} scales tables, not weights: with a scale per channel"
    if spec.lut_qspec is not None:
        return (
            f"{why} tables cannot be 8-bit integers; deployment_target iOS26 takes both",
            _with(spec, lut_qspec=None),
        )
    ratio = size_with_a_table_per_channel(facts.layout, spec.n_bits, facts.dtype)
    if ratio >= 1:
        return (
            f"{why} each channel needs a table of its own, {ratio:.2f} times the dense weight in "
            "all; deployment_target iOS26 stores the scales beside one table",
            _with(spec, enable_per_channel_scale=False),
        )
    return None


def _obstacle_to_folding(
    facts: TensorFacts, spec: PalettizationSpec, options: CoreMLOptions
) -> tuple[str, PalettizationSpec] | None:
    sparse = spec.sparsity_detection_threshold is not None
    if options.channel_scales != "folded" or (spec.lut_qspec is not None and not sparse):
        return None
    why = "channel_scales folded multiplies scales into tables of floats"
    instead = "tables of 8-bit integers, or channel_scales beside, need no such table"
    if sparse:
        instead = "channel_scales beside needs no such table"
    if spec.scale_block_size is not None:
        return (
            f"{why}, which scales per block of inputs would need one table for each of; {instead}",
            _with(spec, scale_block_size=None, enable_per_channel_scale=True),
        )
    ratio = size_with_a_table_per_channel(facts.layout, spec.n_bits, facts.dtype)
    if ratio >= 1:
        return (
            f"{why}, one for each channel, {ratio:.2f} times the dense weight in all; {instead}",
            _with(spec, enable_per_channel_scale=False),
        )
    return None


def _obstacle_before_ios18(
    facts: TensorFacts, spec: PalettizationSpec, name: str
) -> tuple[str, PalettizationSpec] | None:
    later = f"{name} cannot store it; deployment_target iOS18 can"
    if spec.cluster_dim > 1:
        return f"cluster_dim {spec.cluster_dim}: {later}", _with(spec, cluster_dim=1)
    one_table = isinstance(spec.granularity, PerTensorGranularity)
    if not one_table and set(facts.layout.grid) != {1}:
        return (
            f"{facts.layout.n_blocks} tables in one weight: {later}",
            _with(spec, granularity=PerTensorGranularity()),
        )
    if spec.lut_qspec is not None:
        return f"tables of 8-bit integers: {later}", _with(spec, lut_qspec=None)
    if spec.is_scaled:
        return (
            f"scales beside tables: {later}",
            _with(spec, enable_per_channel_scale=False, scale_block_size=None),
        )
    if spec.n_bits not in _BITS_BEFORE_IOS18:
        return f"{spec.n_bits} bits: {later}", _with(spec, n_bits=4)
    return None


def _with(spec: PalettizationSpec, **changes: Any) -> PalettizationSpec:
    """Return a changed spec; an algorithm for vectors need not know scalars, so none is named."""
    if "cluster_dim" in changes:
        changes |= {"algorithm": None, "algorithm_options": {}}
    return PalettizationSpec(**{**spec.model_dump_preserve_objects(), **changes})
