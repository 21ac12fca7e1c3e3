"""Dependence of a model's loss on each input vector's outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from palette_core.errors import CalibrationError
from palette_core.statistics.activations.collect import CallKey
from palette_core.statistics.activations.runs import Runner
from palette_core.statistics.activations.watch import Seen
from palette_core.tensors.input_views import InputView


def loss_weights(
    runner: Runner, loss: Callable[[Any, Any], Tensor], output_groups: int
) -> dict[CallKey, Tensor]:
    """Return, by call, ``[n, T]`` float32: mean squared gradients of groups of outputs.

    H of a group of output channels then is Σ_t s_t x_t x_tᵀ, s_t the mean over the group of the
    squared gradient of the loss with respect to the outputs (Kim et al. 2025, GuidedQuant,
    arXiv 2505.07004, section 3). Weights have mean 1 for each group and tensor. Operations whose
    outputs do not belong to one input vector each (transposed convolutions, embeddings, grouped
    convolutions, the projections of ``MultiheadAttention``) get none, nor do products ``x @ W``.

    Args:
        runner: model, plans and batches; entered.
        loss: gets the model's output and the batch, returns a scalar with a gradient.
        output_groups: how many groups; fewer where they do not divide the outputs.

    Raises:
        CalibrationError: the model or the loss failed, the loss is not finite, or has no gradient.
    """
    found: dict[CallKey, Tensor] = {}
    for number in range(len(runner.batches)):
        outputs: dict[CallKey, tuple[InputView, Tensor]] = {}

        def see(
            seen: Seen, out: Any, number: int = number, outputs: dict[Any, Any] = outputs
        ) -> Any:
            if seen.what is None or not isinstance(out, Tensor):
                return out
            view = seen.what.view
            if view.groups() != 1 or view.rows != (0,) or view.is_diagonal:
                return out
            if view.outputs(out) is None:
                return out
            if not out.requires_grad:
                out = out.detach().requires_grad_()
            outputs[seen.name, number, seen.call] = (view, out)
            return out

        made = runner.run(number, on_output=see, gradients=True)
        with torch.enable_grad():
            batch = runner.copy_of(number)
            gradients = _gradients(loss, made, batch, [out for _, out in outputs.values()], number)
        runner.put_back()
        for (key, (view, out)), gradient in zip(outputs.items(), gradients, strict=True):
            # None is of a call that the loss does not depend on.
            slopes = torch.zeros_like(out) if gradient is None else gradient
            if not bool(torch.isfinite(slopes).all()):
                raise CalibrationError(
                    f"the loss has NaN or infinite gradients on calibration batch {number}, the "
                    f"first of them at the outputs of {key[0]}; leave the batch out, or mend the "
                    "loss"
                )
            found[key] = _squares(view, slopes, output_groups)
    return _of_mean_one(found)


def _gradients(
    loss: Callable[[Any, Any], Tensor], made: Any, batch: Any, outputs: list[Tensor], number: int
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the loss by outputs, None where it does not depend on one.

    Raises:
        CalibrationError: the loss failed, is not finite, or depends on none of the outputs.
    """
    where = f"calibration batch {number}"
    try:
        value = loss(made, batch)
    except Exception as error:
        raise CalibrationError(
            f"the loss failed on {where}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(value, Tensor):
        raise CalibrationError(
            f"the loss returned {type(value).__name__} on {where}, expected a scalar tensor"
        )
    if not bool(torch.isfinite(value).all()):
        raise CalibrationError(
            f"the loss is not finite on {where}: {value.detach().flatten()[0].item()}; leave the "
            "batch out, or mend the loss"
        )
    if not outputs:
        return ()
    try:
        return torch.autograd.grad(value, outputs, allow_unused=True)
    except Exception as error:
        raise CalibrationError(
            f"the loss failed on {where}: {type(error).__name__}: {error}"
        ) from error


def _squares(view: InputView, gradient: Tensor, output_groups: int) -> Tensor:
    rows = view.outputs(gradient.detach().double())
    assert rows is not None
    groups = output_groups if rows.shape[1] % output_groups == 0 else 1
    squares = rows.square().reshape(rows.shape[0], groups, -1).mean(dim=2)
    return squares.t().cpu()


def _of_mean_one(found: dict[CallKey, Tensor]) -> dict[CallKey, Tensor]:
    """Scale to mean 1 by tensor and group; without any gradient, inputs count equally."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for (name, _, _), value in found.items():
        sums[name] = sums.get(name, torch.zeros(value.shape[0]).double()) + value.sum(dim=1)
        counts[name] = counts.get(name, 0) + value.shape[1]
    out = {}
    for key, value in found.items():
        mean = sums[key[0]] / counts[key[0]]
        if not bool((mean > 0).any()):
            continue
        safe = torch.where(mean > 0, mean, 1.0)[:, None]
        out[key] = torch.where(mean[:, None] > 0, value / safe, 1.0).float()
    return out
