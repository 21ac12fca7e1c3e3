"""Tune look-up tables; every weight keeps its entry."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from tasks import Task
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from palette_core import KMeansPalettizer

EPOCHS = 2
RATE = 0.004
"""Of Adam, in mean distances of neighbouring entries."""
ROWS = 2
"""Of a batch in one step."""


def tuned(
    palettizer: KMeansPalettizer, model: nn.Module, dense: nn.Module, task: Task, towards: str
) -> None:
    """Tune the tables of a prepared model, whose strategy is ``tables``, on calibration batches.

    Args:
        palettizer: that has prepared it.
        model: prepared.
        dense: as it was before.
        task: its batches, and its loss.
        towards: "outputs" of ``dense``, without labels; or "labels", by the loss of the task.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    groups = [_group(p) for n, p in model.named_parameters() if n.endswith(".0.lut")]
    # The loss of a task knows its batches, and none of their parts.
    cut = _parts if towards == "outputs" else _whole
    batches = [part for batch in task.batches for part in cut(batch)]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    steps = EPOCHS * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    order = torch.Generator().manual_seed(0)
    with palettizer.training_mode():
        for module in model.modules():
            if isinstance(module, (_BatchNorm, nn.Dropout)):
                module.eval()
        for _ in range(EPOCHS):
            for at in torch.randperm(len(batches), generator=order).tolist():
                optimizer.zero_grad()
                _loss(model, dense, batches[at], task, towards).backward()
                optimizer.step()
                schedule.step()
                palettizer.step()


def teacher(model: nn.Module) -> nn.Module:
    """Return a copy of the dense model, to be taken before `prepare`."""
    return copy.deepcopy(model).eval()


def _group(table: Tensor) -> dict[str, Any]:
    span = table.detach().amax(-2) - table.detach().amin(-2)
    gap = float(span.mean()) / (table.shape[-2] - 1)
    return {"params": [table.requires_grad_()], "lr": RATE * gap}


def _parts(batch: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Cut a batch into steps of a few rows, where all its inputs have as many rows."""
    if len({len(x) for x in batch}) > 1:
        return [batch]
    return list(zip(*(x.split(ROWS) for x in batch), strict=True))


def _whole(batch: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    return [batch]


def _loss(
    model: nn.Module, dense: nn.Module, batch: tuple[Any, ...], task: Task, towards: str
) -> Tensor:
    if towards == "labels":
        return task.loss(model(*batch), batch)
    with torch.no_grad():
        target = dense(*batch)
    return _distance(model(*batch), target, task)


def _distance(output: Tensor, target: Tensor, task: Task) -> Tensor:
    """Kullback-Leibler divergence of logits; of embeddings, what is short of a cosine of 1."""
    if not task.lower_is_better:
        return (1 - F.cosine_similarity(output, target, dim=-1)).mean()
    found, wanted = (x.flatten(0, -2).log_softmax(-1) for x in (output, target))
    return F.kl_div(found, wanted, log_target=True, reduction="batchmean")
