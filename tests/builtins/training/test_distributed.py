"""Two gloo processes with data of their own train to the same palettes."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from training_models import INPUTS, assert_same_values, items, prepared

STEPS = 6
START = 3


def work(rank: int, port: int, strategies: tuple[str, ...], folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        for strategy in strategies:
            for start in (None, START):
                found = run(rank, strategy, start)
                torch.save(found, Path(folder) / f"{strategy}-{start}-{rank}.pt")
    finally:
        dist.destroy_process_group()


def run(rank: int, strategy: str, start: int | None) -> list[dict[str, Any]]:
    """What the model holds after every step."""
    palettizer, model = prepared(start=start, training_strategy=strategy)
    # Waiting tables, and weights that are frozen, get no gradient.
    parallel = DistributedDataParallel(
        model, find_unused_parameters=strategy == "frozen" or start is not None
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    inputs = INPUTS[0] * (1 + rank)
    found = []
    with palettizer.training_mode(model):
        for _ in range(STEPS):
            optimizer.zero_grad()
            (parallel(inputs) - rank).square().mean().backward()
            optimizer.step()
            palettizer.step()
            found.append({k: v.clone() for k, v in model.state_dict().items()})
    model.eval()(inputs)
    for item in items(model):
        found.append({"indices": item.indices.clone(), "lut": item.lut.detach().clone()})
    return found


@pytest.mark.slow
def test_both_ranks_hold_the_same_at_every_step(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    strategies = ("frozen", "ste", "dkm")
    torch.multiprocessing.spawn(work, (port, strategies, str(tmp_path)), nprocs=2)
    for strategy in strategies:
        for start in (None, START):
            first, second = (
                torch.load(tmp_path / f"{strategy}-{start}-{rank}.pt") for rank in (0, 1)
            )
            assert len(first) == STEPS + 3
            for a, b in zip(first, second, strict=True):
                assert_same_values(a, b)
            moved = [step["0.parametrizations.weight.original"] for step in first[:STEPS]]
            learns = strategy != "frozen"
            assert torch.equal(moved[0], moved[-1]) is not (learns or start is not None)
            if start is not None:
                on = [bool(step["0.parametrizations.weight.0.enabled"]) for step in first[:STEPS]]
                assert on == [at + 1 >= START for at in range(STEPS)]


def test_the_ranks_do_see_different_data() -> None:
    """Without averaging they would differ, so the test above can fail."""
    alone = []
    for rank in (0, 1):
        palettizer, model = prepared(training_strategy="ste")
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        with palettizer.training_mode():
            (model(INPUTS[0] * (1 + rank)) - rank).square().mean().backward()
            optimizer.step()
        alone.append(items(model)[0].lut)
    with pytest.raises(AssertionError):
        assert_same_values({"lut": alone[0]}, {"lut": alone[1]})
