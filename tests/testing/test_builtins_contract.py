"""The built-in plug-ins keep the contract that anybody's must keep."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import operation_calls
import torch
from safetensors import safe_open

from palette_core.testing import parametrize_contract


def read_checkpoint_weights(path: Path) -> dict[str, np.ndarray]:
    """Decode a packed checkpoint from the description of its format, by numpy alone."""
    weights = {}
    with safe_open(path, framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        records = json.loads(file.metadata()["palette_core"])["palettized"]
    for name, record in records.items():
        n, axis, shape = record["n_bits"], record["axis"], record["index_shape"]
        mask = np.ones(shape, bool)
        if f"{name}.mask" in stored and stored[f"{name}.lut"].shape[-1] > 1:
            weights[name] = _vectors_of_nonzeros(name, stored, record)
            continue
        if f"{name}.mask" in stored:
            stream = np.unpackbits(stored[f"{name}.mask"].numpy(), bitorder="little")
            mask = stream[: mask.size].reshape(shape).astype(bool)
        part = "indices" if mask.all() else "nonzero_indices"
        stream = np.unpackbits(stored[f"{name}.{part}"].numpy(), bitorder="little")
        count, indices = int(mask.sum()), np.zeros(shape, np.int64)
        digits = stream[: count * n].reshape(count, n).astype(np.int64)
        indices[mask] = (digits << np.arange(n)).sum(1)
        lut = stored[f"{name}.lut"].float().numpy()
        if f"{name}.lut_zero_point" in stored:
            lut = lut - stored[f"{name}.lut_zero_point"].float().numpy()
        if f"{name}.lut_scale" in stored:
            lut = lut * stored[f"{name}.lut_scale"].numpy()
        weight = np.zeros([s * lut.shape[-1] if a == axis else s for a, s in enumerate(shape)])
        for place in np.ndindex(*shape):
            cell = tuple(p * g // s for p, g, s in zip(place, lut.shape, shape, strict=False))
            run = [*place]
            run[axis] = slice(place[axis] * lut.shape[-1], (place[axis] + 1) * lut.shape[-1])
            weight[tuple(run)] = lut[(*cell, indices[place])]
        if f"{name}.scale" in stored:
            scale = stored[f"{name}.scale"].float().numpy()
            for at, extent in enumerate(weight.shape):
                scale = scale.repeat(extent // scale.shape[at], at)
            weight = weight * scale
        wide = mask.repeat(weight.shape[axis] // shape[axis], axis)
        weights[name] = np.where(wide, weight, 0).astype(np.float32)
    return weights


def _vectors_of_nonzeros(name, stored, record) -> np.ndarray:
    """Decode tables of rows whose entries stand for nonzeros that follow each other."""
    n, axis, lut = record["n_bits"], record["axis"], stored[f"{name}.lut"].float().numpy()
    tables, dim = lut.shape[0], lut.shape[-1]
    assert lut.shape[:-2] == (tables, *[1] * (lut.ndim - 3))
    assert f"{name}.lut_scale" not in stored
    assert f"{name}.scale" not in stored
    shape = [s * dim if a == axis else s for a, s in enumerate(record["index_shape"])]
    stream = np.unpackbits(stored[f"{name}.mask"].numpy(), bitorder="little")
    mask = stream[: np.prod(shape)].reshape(tables, -1).astype(bool)
    stream = np.unpackbits(stored[f"{name}.nonzero_indices"].numpy(), bitorder="little")
    weight, at = np.zeros(mask.shape, np.float32), 0
    for table, (inside, row) in enumerate(zip(mask, weight, strict=True)):
        for first in range(0, inside.sum(), dim):
            index = int((stream[at : at + n].astype(int) << np.arange(n)).sum())
            at += n
            places = np.flatnonzero(inside)[first : first + dim]
            row[places] = lut.reshape(tables, -1, dim)[table, index][: len(places)]
    return weight.reshape(shape)


def read_state_dict(path):
    states = torch.load(path, weights_only=True)
    return {name: np.asarray(value) for name, value in states.items() if name.endswith("weight")}


@parametrize_contract(
    "palette-core",
    options={
        "granularity/per_grouped_channel": [
            {"group_size": 1},
            {"group_size": 4},
            {"group_size": 16, "axis": 1},
        ]
    },
    readers={"packed": read_checkpoint_weights, "torch": read_state_dict},
    calls=operation_calls.CALLS,
    expected_failures={
        "operation/embedding/axis": "the documented axis is that of the vocabulary",
        "operation/multi_head_attention_forward/inputs": "softmax stands behind the projections",
    },
)
def test_contract(check):
    check()
