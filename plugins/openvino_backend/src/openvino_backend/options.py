"""Options of an exported file."""

from __future__ import annotations

from typing import Literal, final

from pydantic import BaseModel, ConfigDict, Field


@final
class OpenVINOOptions(BaseModel):
    """Options of the ``openvino`` backend."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    activation_group_size: int | None = Field(
        default=None,
        ge=0,
        multiple_of=16,
        description="How many activations of a row the CPU rounds to 8 bits with one scale, in "
        "products by weights of 8-bit integers: a multiple of 16 that divides the inputs of each "
        "such layer; 0 leaves activations as they are. Larger groups are quicker on one thread, "
        "and round more. None leaves it to the runtime, which takes 32; whoever compiles the file "
        "can override what it says.",
    )
    compute_precision: Literal["float32", "float16"] = Field(
        default="float32",
        description="How constants of float32 that are not palettized are stored. float32 keeps "
        "every value; float16 rounds those that fit its range, and keeps the others in float32. "
        "Look-up tables and scales are never rounded.",
    )
    exact_scales: bool = Field(
        default=False,
        description="Multiply by the scale of a table of integers and by that of a channel one "
        "after the other, as the model does. By default the two are multiplied when the file is "
        "written, which rounds a weight once more (1.2e-7 of it at most), and lets the runtime "
        "keep such weights in 8 bits.",
    )
    function: str = Field(
        default="forward",
        description="Name of the model's method that is exported. A file holds one function: a "
        "model of several is exported to a file for each, of the weights that it uses.",
    )
    keep_nan: bool = Field(
        default=False,
        description="Let every relu, and every clamp with two bounds, give NaN where it reads it. "
        "By default those do that the runtime computes alone; behind convolutions, products and "
        "arithmetic it computes them in one go, and they drop NaN. Takes a few percent of the "
        "time, a third in depthwise convolutions.",
    )
    states: tuple[str, ...] = Field(
        default=(),
        description="Names of forward's arguments, a tensor or a nest of them each, that the "
        "runtime keeps from call to call; forward's last outputs are their next values, in the "
        "same order. They begin as zeros, with axes that dynamic_shapes lets vary as short as it "
        "lets them be, so that a cache grows from nothing.",
    )
    input_names: tuple[str, ...] = Field(
        default=(),
        description="Names of the inputs, in the order of the model's; empty keeps those of its "
        "forward.",
    )
    output_names: tuple[str, ...] = Field(
        default=(),
        description="Names of the outputs; empty takes the keys of dictionaries, and numbers "
        "others: output_0, output_1.",
    )
