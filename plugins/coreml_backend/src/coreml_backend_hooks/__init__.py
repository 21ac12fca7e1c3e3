"""Light part of the plug-in, for its listing: its options and its entry, and nothing heavy.

A package of its own, because importing any part of ``coreml_backend`` imports that package, which
registers the lowering with coremltools and so has to import it.
"""

from __future__ import annotations

from typing import Literal, final

from pydantic import BaseModel, ConfigDict, Field

from palette_core.plugins import Backend, ExportBackendEntry, hookimpl

Target = Literal[
    "iOS16",
    "iOS17",
    "iOS18",
    "iOS26",
    "macOS13",
    "macOS14",
    "macOS15",
    "macOS26",
    "watchOS9",
    "watchOS10",
    "watchOS11",
    "watchOS26",
    "tvOS16",
    "tvOS17",
    "tvOS18",
    "tvOS26",
]

Float = Literal["float16", "float32"]


@final
class Image(BaseModel):
    """An input that is an image: value = scale * pixel + bias, as coremltools has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: float = 1.0
    bias: float | tuple[float, float, float] | None = None
    color_layout: Literal["RGB", "BGR", "G"] = "RGB"


@final
class CoreMLOptions(BaseModel):
    """Options of the backend ``coreml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    deployment_target: Target = Field(
        default="iOS18",
        description="Oldest system that has to load the package. Tables per group, vectors, 3 "
        "bits, 8-bit tables and scales per channel need iOS18 or its siblings of that year; a "
        "scale per channel together with 8-bit tables needs iOS26.",
    )
    compute_precision: Literal["float16", "float32"] = Field(
        default="float16",
        description="Precision of the converted program. float16, coremltools' own default, rounds "
        "tables, and so weights, by up to 0.05 %; float32 keeps them bit for bit. Layers whose "
        "weights float16 does not hold stay in float32.",
    )
    channel_scales: Literal["beside", "folded"] = Field(
        default="beside",
        description="Where scales per channel go in packages for iOS26: beside one table, or "
        "folded into the scale of 8-bit tables, or into a table of floats for each channel. The "
        "Neural Engine is reported to refuse scales beside tables of floats. Older targets fold "
        "dense weights in any case.",
    )
    float32_operations: tuple[str, ...] = Field(
        default=(),
        description="Types of Core ML's operations that stay in float32 in a float16 program, "
        "such as softmax or reduce_sum.",
    )
    input_names: tuple[str, ...] = Field(
        default=(), description="Names of the inputs, in order; empty keeps those of forward."
    )
    output_names: tuple[str, ...] = Field(
        default=(), description="Names of the outputs, in order; empty lets coremltools name them."
    )
    state_names: tuple[str, ...] = Field(
        default=(), description="Names of the states, buffers that the model writes to, in order."
    )
    image_inputs: dict[str, Image] = Field(
        default={},
        description="Inputs that are images, by name: scale, bias and color_layout of each.",
    )
    image_outputs: dict[str, Literal["RGB", "BGR", "G", "G16"]] = Field(
        default={},
        description="Outputs that are images, by name: their color layout. Values are pixels, 0 to "
        "255; those of G16, gray, are float16.",
    )
    input_dtypes: dict[str, Float] = Field(
        default={},
        description="Dtype of inputs of floats, by name: float16 saves the cast from float32.",
    )
    output_dtypes: dict[str, Float] = Field(
        default={}, description="Dtype of outputs of floats, by name, or by key of a dictionary."
    )
    enumerated_shapes: dict[str, tuple[tuple[int, ...], ...]] = Field(
        default={},
        description="The shapes that an input may have, by name; the first is the default. Axes "
        "in which they differ are dynamic in dynamic_shapes.",
    )
    user_metadata: dict[str, str] = Field(
        default={}, description="Kept in the package, as Core ML's user-defined metadata."
    )
    show_progress: bool = Field(default=False, description="Let coremltools draw progress bars.")
    version: str = Field(default="", description="Kept in the package's metadata.")
    author: str = Field(default="", description="Kept in the package's metadata.")
    license: str = Field(default="", description="Kept in the package's metadata.")
    description: str = Field(default="", description="Kept in the package's metadata.")


def _make(options: CoreMLOptions) -> Backend:
    from coreml_backend.backend import CoreMLBackend

    return CoreMLBackend(options)


@hookimpl
def palette_core_export_backends() -> list[ExportBackendEntry]:
    """Core ML packages."""
    return [
        ExportBackendEntry(
            name="coreml",
            summary="Core ML packages for iOS 16, macOS 13 and later, with palettized weights",
            interface=1,
            options=CoreMLOptions,
            factory=_make,
            suffix=".mlpackage",
            stored_forms=("indices", "sparse"),
            edits_programs=True,
            takes_functions=True,
        )
    ]
