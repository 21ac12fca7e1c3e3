"""Attention with its projections."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from palette_core.plugins import Consumption, Operation, OperationCall
from palette_core.tensors import Features


class Attention(Operation):
    """``torch.nn.functional.multi_head_attention_forward``."""

    def consumptions(self, call: OperationCall) -> Iterator[Consumption]:
        """Yield the projections of queries, keys and values, and of the output."""
        query, key, value = call["query"], call["key"], call["value"]
        if call.get("use_separate_proj_weight"):
            for name, x in (("q", query), ("k", key), ("v", value)):
                yield Consumption(call[f"{name}_proj_weight"], (x,), Features())
        elif query is key and key is value:
            yield Consumption(call["in_proj_weight"], (query,), Features())
        else:
            yield Consumption(call["in_proj_weight"], (query, key, value), Features(parts=3))
        out = call["out_proj_weight"]
        # What goes into the output projection shows when that is the identity.
        same = torch.eye(out.shape[1], dtype=out.dtype, device=out.device)
        seen = call.func(**{**call.arguments, "out_proj_weight": same, "out_proj_bias": None})
        yield Consumption(out, (seen[0],), Features())
