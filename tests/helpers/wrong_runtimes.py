"""Training strategies and export backends that break one sentence of the contract each."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palette_core.builtins.backends.packed import PackedBackend
from palette_core.plugins import (
    Backend,
    ExportBackendEntry,
    NoOptions,
    ProgramWeight,
    Refusal,
    TrainingStrategy,
    TrainingStrategyEntry,
)
from palette_core.plugins.training_problem import TrainingProblem
from palette_core.storage.packed_weight import PackedWeight
from palette_core.tensors.nearest import sums_by_code
from palette_core.tensors.packing import pack_indices

Forward = Callable[[Any, Tensor, Tensor], Any]  # strategy, dense weight, decoded one
Call = Callable[[TrainingProblem], Any]


class Forwards(TrainingStrategy):
    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self.calls = itertools.count()
        self.first: Tensor | None = None

    def forward(self, problem):
        return self._forward(self, problem.weight, problem.decode())


def remembers(strategy: Any, weight: Tensor, decoded: Tensor) -> Tensor:
    if strategy.first is None:
        strategy.first = weight.detach().clone()
    return strategy.first + weight - weight.detach()


def writes(strategy: Any, weight: Tensor, decoded: Tensor) -> Tensor:
    weight.data.mul_(0.5)
    return decoded


def writes_kept(strategy: Any, weight: Tensor, decoded: Tensor) -> Tensor:
    array = decoded.numpy()  # torch does not see what is written through it
    array *= 0.5
    return decoded


def strategy(forward: Forward) -> TrainingStrategyEntry:
    return TrainingStrategyEntry(
        name="wrong",
        summary="wrong",
        interface=1,
        options=NoOptions,
        factory=lambda _: Forwards(forward),
    )


class Settles(TrainingStrategy):
    """Nearest entries, and tables at the means of their points; some part replaced."""

    def __init__(self, harden: Call | None, advance: Call | None) -> None:
        self._harden, self._advance = harden, advance

    def forward(self, problem):
        return problem.decode() + problem.weight - problem.weight.detach()

    def harden(self, problem):
        return self._harden(problem) if self._harden else nearest(problem)

    def advance(self, problem):
        return self._advance(problem) if self._advance else means(problem)


def nearest(problem: TrainingProblem) -> Tensor:
    return problem.nearest(problem.points(), problem.as_stored(problem.lut))


def means(problem: TrainingProblem) -> Tensor:
    points, codes = problem.points(), nearest(problem)
    n_entries = problem.lut.shape[1]
    counts = sums_by_code(torch.ones_like(points), codes, n_entries)
    sums = sums_by_code(points, codes, n_entries)
    return torch.where(counts > 0, sums / counts, problem.lut.double())


def rotates(problem: TrainingProblem) -> Tensor:
    return (problem.codes() + 1) % problem.lut.shape[1]


def draws(problem: TrainingProblem) -> Tensor:
    torch.rand(1)
    return nearest(problem)


def shakes(problem: TrainingProblem) -> Tensor:
    noise = torch.Generator().manual_seed(torch.initial_seed())
    return means(problem) + torch.rand((), generator=noise, dtype=torch.float64)


def moves_in_place(problem: TrainingProblem) -> Tensor:
    problem.lut.copy_(means(problem))
    return problem.lut


def settles(harden: Call | None = None, advance: Call | None = None) -> TrainingStrategyEntry:
    return TrainingStrategyEntry(
        name="wrong",
        summary="wrong",
        interface=1,
        factory=lambda _: Settles(harden, advance),
        moves_lut=True,
    )


TRAINING: dict[str, TrainingStrategyEntry] = {
    "weight": strategy(lambda s, w, decoded: decoded.float()),
    "repeatable": strategy(lambda s, w, decoded: decoded * (1 + next(s.calls) / 10)),
    "inputs-untouched": strategy(writes),
    "gradients": strategy(lambda s, w, decoded: decoded + (w - w.detach()).abs().sqrt()),
    "resumes": strategy(remembers),
    "evaluation": strategy(writes_kept),
    "harden-codes": settles(harden=lambda problem: nearest(problem).long()),
    "harden-repeatable": settles(harden=lambda problem: (nearest(problem) + problem.step) % 4),
    "harden-settles": settles(harden=rotates),
    "harden-pure": settles(harden=draws),
    "advance-declared": replace(settles(), moves_lut=False),
    "advance-tables": settles(advance=lambda problem: means(problem)[:, :-1]),
    "advance-repeatable": settles(advance=shakes),
    "advance-pure": settles(advance=moves_in_place),
}


class Exports(Backend):
    """The built-in backend, with some part replaced."""

    def __init__(self, check_support=None, finalize=None, export=None, check_program=None) -> None:
        self.right = PackedBackend(None)
        self._check_support, self._finalize, self._export = check_support, finalize, export
        self._check_program = check_program

    def check_support(self, facts):
        return self._check_support(facts) if self._check_support else None

    def check_program(self, model, example_inputs, dynamic_shapes=None):
        if self._check_program is None:
            return ()
        return self._check_program(model, example_inputs, dynamic_shapes)

    def finalize(self, model, palettized):
        return self._finalize(model) if self._finalize else model

    def export(self, model, example_inputs, path, dynamic_shapes=None):
        changed = self._export(model) if self._export else model
        if isinstance(changed, Path):
            return changed
        return self.right.export(changed, example_inputs, path, dynamic_shapes)


class Exaggerates(Exports):
    """Says that a sparse weight takes five kilobytes that it does not take."""

    sparse_overhead = 5000


class Edits(Exports):
    """Programs are saved states, and replacing one weight moves all the others."""

    def export(self, model, example_inputs, path, dynamic_shapes=None):
        torch.save(dict(model.state_dict()), path)
        return path

    def read_program(self, path):
        state = torch.load(path)
        return {name: ProgramWeight(w) for name, w in state.items() if w.dim() > 1}

    def replace_weights(self, path, palettized, fresh):
        state = {name: weight + 1 for name, weight in torch.load(path).items()}
        torch.save(state | {name: each.decode() for name, each in palettized.items()}, fresh)
        return fresh


def packed(model: Any) -> list[PackedWeight]:
    return [m for m in model.modules() if isinstance(m, PackedWeight)]


def rejects_vectors(model: Any) -> Any:
    if any(m.palettized().cluster_dim > 1 for m in packed(model)):
        raise NotImplementedError("no vectors here")
    return model


def flips_tables(model: Any) -> Any:
    model = copy.deepcopy(model)
    for module in packed(model):
        if not module.lut.dtype.is_floating_point:
            continue
        module.lut.copy_(module.lut.flip(-2).clone())
    return model


def loses_mapped(model: Any) -> Any:
    if any(m._file is not None for m in packed(model)):
        return flips_tables(model)
    return model


def drops_biases(model: Any) -> Any:
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    return model


def supports_once() -> Callable[[Any], Any]:
    return lambda facts: Refusal("it is a bad day") if next(_days) % 2 else None


_days = itertools.count()


def fills_zeros(model: Any) -> Any:
    model = copy.deepcopy(model)
    for module in packed(model):
        if module.form.name == "sparse":
            made = module.palettized()
            module.nonzero_indices = pack_indices(made.indices, made.n_bits)
            module.mask = torch.full_like(module.mask, 255)
    return model


def backend(**parts: Any) -> ExportBackendEntry:
    return ExportBackendEntry(
        name="wrong",
        summary="wrong",
        interface=1,
        options=NoOptions,
        factory=lambda _: Exports(**parts),
        suffix=".safetensors",
        supports_mmap=True,
    )


BACKENDS: dict[str, ExportBackendEntry] = {
    "refusals": backend(check_support=supports_once()),
    "accepted": backend(export=rejects_vectors),
    "refused": backend(check_support=lambda f: Refusal("too many") if f.spec.n_bits == 8 else None),
    "read-back": backend(export=flips_tables),
    "zeros": replace(backend(export=fills_zeros), stored_forms=("indices", "sparse")),
    "sparse-overhead": replace(
        backend(), factory=lambda _: Exaggerates(), stored_forms=("indices", "sparse")
    ),
    "programs": replace(backend(), factory=lambda _: Edits(), edits_programs=True),
    "mapped": backend(export=loses_mapped),
    "finalized": backend(finalize=drops_biases),
    "model-unchanged": backend(export=drops_biases),
}
