"""Options of an exported file."""

from __future__ import annotations

from typing import Literal, final

from pydantic import BaseModel, ConfigDict, Field

from palette_core.plugins import ExportRequest


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
