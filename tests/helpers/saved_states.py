"""A backend whose programs are saved states; how a weight is used follows from its shape."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict

from palette_core.plugins import Backend, ExportBackendEntry, ProgramWeight, Refusal


class Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    most_bits: int = 8


class States(Backend):
    def __init__(self, options):
        self.most_bits = options.most_bits

    def check_support(self, facts):
        assert facts.in_program
        few = facts.spec.n_bits <= self.most_bits
        return None if few else Refusal(f"indices of {facts.spec.n_bits} bits")

    def finalize(self, model, palettized):
        raise NotImplementedError

    export = finalize

    def read_program(self, path):
        state = torch.load(path)
        return {
            name: ProgramWeight(
                values,
                "conv2d" if values.dim() == 4 else "linear",
                0,
                "it is shared with a buffer" if name.startswith("shared") else None,
            )
            for name, values in state.items()
            if values.dim() > 1
        }

    def replace_weights(self, path, palettized, fresh):
        if "breaks" in palettized:
            fresh.write_bytes(b"half")
            raise ValueError("no room for it")
        torch.save(torch.load(path) | {n: p.decode() for n, p in palettized.items()}, fresh)
        return fresh


STATES = ExportBackendEntry(
    name="states",
    summary="saved states",
    interface=1,
    options=Options,
    factory=States,
    suffix=".states",
    edits_programs=True,
)
