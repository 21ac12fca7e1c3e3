"""Options of an exported file."""

from __future__ import annotations

from typing import Annotated, Literal, final

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, StringConstraints

from palette_core.plugins import ExportRequest

Suffix = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


@final
class Layout(BaseModel):
    """Memory of a tensor and spacing of its axes, as ``HardwareConstraints`` of Core AI."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allocation: Literal["MTLBuffer", "IOSurface", "Heap"]
    alignments: tuple[PositiveInt, ...]
    interleave: tuple[PositiveInt, ...]


@final
class Composite(BaseModel):
    """Operation that a module stands for, and the module's numbers and texts that say more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operation: Annotated[str, StringConstraints(min_length=1)]
    attributes: tuple[str, ...] = ()


@final
class CoreAIOptions(BaseModel):
    """Options of the ``coreai`` backend."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_names: tuple[str, ...] = Field(
        default=(),
        description="Names of the program's inputs, in the order of the model's; empty keeps "
        "those of its forward.",
    )
    output_names: tuple[str, ...] = Field(
        default=(),
        description="Names of the program's outputs; empty lets the converter name them.",
    )
    state_names: tuple[str, ...] = Field(
        default=(),
        description="Names of its states, buffers that the model writes to, in the order of the "
        "model's; empty keeps those of torch.export.",
    )
    compute_precision: Literal["float16", "bfloat16"] | None = Field(
        default=None,
        description="Floating dtype of weights, inputs and outputs in the file; None is that of "
        "the model.",
    )
    static_shapes: dict[str, dict[Suffix, dict[str, tuple[PositiveInt, ...]]]] = Field(
        default={},
        description="Sets of fixed shapes that take the place of a function with axes that vary, "
        "by function, set and input: {main: {prefill: {x: [1, 64]}}} makes main_prefill.",
    )
    hardware_constraints: dict[str, dict[str, Layout]] = Field(
        default={},
        description="Memory of inputs, outputs and states, by function and name: allocation "
        "(MTLBuffer, IOSurface or Heap), alignments, one more than axes, and interleave.",
    )
    externalize: tuple[str, ...] = Field(
        default=(),
        description="Names of modules, or of their classes, that become graphs of their own, "
        "called where the model calls them; they take and return tensors.",
    )
    composites: dict[str, Composite] = Field(
        default={},
        description="The same, marked as an operation that a compiler may know: "
        "{norm: {operation: rms_norm, attributes: [eps]}}.",
    )
    minimum_os: Literal["v27"] = Field(
        default="v27", description="Oldest system that has to load the file."
    )
    user_metadata: dict[str, str] = Field(
        default={}, description="Kept in the file, as metadata of its creator's."
    )
    author: str = Field(default="", description="Kept in the file's metadata.")
    license: str = Field(default="", description="Kept in the file's metadata.")
    description: str = Field(default="", description="Kept in the file's metadata.")
    debug_info: bool = Field(
        default=False,
        description="Keep Python stack traces, with the paths of source files, in the file.",
    )

    def named(self, request: ExportRequest) -> ExportRequest:
        """Return a request with the names of these options, where it has none."""
        return request.or_named(self.input_names, self.output_names, self.state_names)
