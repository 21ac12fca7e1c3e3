"""Finish a converted model: palettes and states in it, names on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import openvino as ov
import torch
from openvino import Dimension, PartialShape
from openvino import opset16 as op

from openvino_backend.activations import group_activations
from openvino_backend.attention import share_keys_and_values
from openvino_backend.batches import leave_batches
from openvino_backend.lowering import Lowering
from openvino_backend.nodes import TYPES, Constants, Output
from openvino_backend.not_numbers import keep_not_numbers
from openvino_backend.options import OpenVINOOptions
from openvino_backend.precision import store_in_float16
from openvino_backend.products import Rows, join_products
from openvino_backend.programs import FlatProgram, Input
from openvino_backend.states import join_states
from openvino_backend.uses import gathers_rows, multiplies, varying
from openvino_backend.weights import Weight
from palette_core import __version__
from palette_core.errors import BackendError
from palette_core.storage import Origin, Source

INFO = "palette_core"  # section of the model's information


@dataclass(frozen=True)
class Converted:
    """A model, and the constants that have to live as long."""

    model: ov.Model
    constants: Constants


def finish(
    program: FlatProgram,
    model: ov.Model,
    options: OpenVINOOptions,
    origins: Mapping[str, Origin] | None = None,
) -> Converted:
    """Put look-ups and states where they were inputs, in place, and name what is left.

    Args:
        program: as it was converted.
        model: what the converter made of it.
        options: of the backend.
        origins: what made the palettes, by name, where that is known.

    Raises:
        BackendError: names of inputs or outputs that do not fit, or groups of activations.
    """
    constants = Constants()
    parameters, results = model.get_parameters(), model.get_results()
    n_inputs, n_weights = len(program.inputs), len(program.weights)
    _name(parameters[:n_inputs], results, program, options)
    share_keys_and_values(model)
    leave_batches(model)
    keep_not_numbers(model, everywhere=options.keep_nan)
    if options.compute_precision == "float16":
        store_in_float16(model, constants)
    stored: dict[str, str] = {}
    live = varying(model, [*parameters[:n_inputs], *parameters[n_inputs + n_weights :]])
    for weight, parameter in zip(program.weights, parameters[n_inputs:], strict=False):
        lowering = Lowering(weight, constants, exact_scales=options.exact_scales)
        stored[weight.name] = _replace(weight, lowering, parameter, live)
        model.remove_parameter(parameter)
    states = slice(n_inputs + n_weights, None)
    join_states(
        model, parameters[states], results[len(program.outputs) :], program.states, constants
    )
    model.validate_nodes_and_infer_types()
    group_activations(model, options.activation_group_size)
    joined = join_products(model)
    places = {name: joined.get(layer, Rows(layer, 0)) for name, layer in stored.items()}
    _inform(model, program, places, origins or {})
    return Converted(model, constants)


# --- inside -------------------------------------------------------------------------------------


def _replace(weight: Weight, lowering: Lowering, parameter: Any, live: set[str]) -> str:
    """Put look-ups in the place of a parameter; returns the layer that gives the weight."""
    layer, users = f"{INFO}/{weight.name}", list(parameter.output(0).get_target_inputs())
    gathers = [user for user in users if gathers_rows(user) and lowering.rows_can_be_gathered()]
    for at, user in enumerate(gathers):
        gather, suffix = user.get_node(), f"[{at}]" * (at > 0)
        tokens = op.convert(gather.input_value(1), "i32")
        tokens.set_friendly_name(f"{layer}/tokens{suffix}")
        rows = lowering.rows(tokens.output(0))
        rows.get_node().set_friendly_name(f"{layer}/rows{suffix}")
        _take_over(gather.output(0), rows)
    if len(gathers) == len(users) and users:
        return f"{layer}/rows"
    others = [user for user in users if user not in gathers]
    dense = lowering.dense(scaled_late=all(multiplies(user, live) for user in others))
    dense.get_node().set_friendly_name(layer)
    parameter.output(0).replace(dense)
    return layer


def _take_over(old: Output, new: Output) -> None:
    names = old.get_names()
    old.replace(new)
    new.set_names(new.get_names() | names)


def _name(
    parameters: list[Any], results: list[Any], program: FlatProgram, options: OpenVINOOptions
) -> None:
    """Give inputs their names, shapes and dtypes, and outputs their names."""
    inputs = _chosen("input_names", options.input_names, [i.name for i in program.inputs])
    outputs = _chosen("output_names", options.output_names, program.outputs)
    for parameter, name, wanted in zip(parameters, inputs, program.inputs, strict=True):
        parameter.set_partial_shape(_shape(wanted))
        parameter.set_element_type(TYPES[wanted.dtype])
        parameter.set_friendly_name(name)
        parameter.output(0).set_names({name})
    taken = set(inputs)
    for result, output in zip(results, outputs, strict=False):
        while output in taken:
            output += "_out"  # noqa: PLW2901
        taken.add(output)
        tensor = result.input_value(0)
        keep = {name for name in tensor.get_names() if name in taken}
        tensor.set_names(keep | {output})
        result.set_friendly_name(output)


def _chosen(option: str, given: tuple[str, ...], own: list[str]) -> list[str]:
    if given and (len(given) != len(own) or len(set(given)) != len(own)):
        raise BackendError(
            f"{option} has {len(given)} names ({', '.join(given)}); the model has {len(own)} "
            f"({', '.join(own)}), and each needs one of its own"
        )
    return list(given) or own


def _shape(wanted: Input) -> PartialShape:
    return PartialShape(
        [Dimension(least, -1 if most is None else most) for least, most in wanted.sizes]
    )


def _inform(
    model: ov.Model, program: FlatProgram, places: dict[str, Rows], origins: Mapping[str, Origin]
) -> None:
    """Write down what was palettized how, by which configuration, plug-ins and versions."""
    sources: list[Source] = []
    weights = {}
    for weight in program.weights:
        row = {
            "layer": places[weight.name].layer,
            "first_row": places[weight.name].first,
            "shape": list(weight.shape),
            "n_bits": weight.n_bits,
            "cluster_dim": weight.dim,
            "grid": list(weight.grid),
            "lut_dtype": str(weight.lut.dtype).removeprefix("torch."),
            "scales": None if weight.scale is None else list(weight.scale.shape),
            "sparse": weight.mask is not None,
        }
        origin = origins.get(weight.name)
        if origin is not None:
            if origin.source not in sources:
                sources.append(origin.source)
            made_by = {"algorithm": origin.algorithm, "seed": origin.seed}
            row |= {**made_by, "source": sources.index(origin.source)}
        weights[weight.name] = row
    model.set_rt_info(__version__, [INFO, "version"])
    model.set_rt_info(torch.__version__, [INFO, "torch"])
    model.set_rt_info(ov.get_version(), [INFO, "openvino"])
    told = [{"config": dict(s.config), "plugins": dict(s.plugins)} for s in sources]
    model.set_rt_info(json.dumps(told), [INFO, "sources"])
    model.set_rt_info(json.dumps(weights), [INFO, "weights"])
