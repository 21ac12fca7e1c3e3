"""The methods that are compared: what they are called, and how each palettizes a model."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks import Task
from torch import nn
from torch.nn.utils import parametrize
from tune import teacher, tuned

METHODS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "coreai-opt": {"peer": True},
    "coreai-opt, sensitive": {"peer": True, "sensitive": True},
    "plain": {},
    "fisher": {"sensitive": True},
    "gptq": {"algorithm": "gptq"},
    "lnq": {"algorithm": "lnq"},
    "gptq, in sequence": {"algorithm": "gptq", "sequential": True},
    "lnq, in sequence": {"algorithm": "lnq", "sequential": True},
    "lnq, in sequence, tuned": {"algorithm": "lnq", "sequential": True, "tuned": "outputs"},
    "lnq, in sequence, tuned on labels": {
        "algorithm": "lnq",
        "sequential": True,
        "tuned": "labels",
    },
    "lnq, in sequence, mixed bits": {"mixed": True},
    "lnq, in sequence, mixed bits, tuned on labels": {"mixed": True, "tuned": "labels"},
    "lnq, in sequence, guided": {"algorithm": "lnq", "sequential": True, "guided": True},
    "lnq, in sequence, per-channel scale": {
        "algorithm": "lnq",
        "sequential": True,
        "scale": True,
    },
}


@dataclass(frozen=True)
class Case:
    """One cell of the table."""

    model: str
    bits: int
    group: int
    method: str
    seed: int

    @property
    def key(self) -> str:
        return " | ".join(str(part) for part in asdict(self).values())


def palettized(case: Case, task: Task, folder: Path) -> tuple[nn.Module, float]:
    """Return a palettized model and its bits per palettized weight; ``folder`` keeps judgements."""
    how = METHODS[case.method]
    assert how is not None
    if how.get("mixed"):
        return _by_budget(case, how, task, folder)
    return (_by_coreai_opt if how.get("peer") else _by_us)(case, how, task)


def _by_budget(
    case: Case, how: dict[str, Any], task: Task, folder: Path
) -> tuple[nn.Module, float]:
    """Palettize with as many bits as one width for all weights would take, tables included."""
    import budget  # whose palette_core has to be newer than coreai-opt's environment may have

    spent = budget.spend(
        budget.Case(
            model=case.model,
            group=case.group,
            target=planned_bits(case, task)[0],
            metric="fisher",
            candidates=(2, 3, 4, 6, 8),
            judged_by="kmeans1d",
            together=True,
            seed=case.seed,
            limit=0,
            tuned=how.get("tuned", ""),
        ),
        task,
        folder,
    )
    return spent.model, spent.allocation.bits_per_weight


def _by_us(case: Case, how: dict[str, Any], task: Task) -> tuple[nn.Module, float]:
    from palette_core import KMeansPalettizer, KMeansPalettizerConfig

    config = KMeansPalettizerConfig.from_dict(config_of(case, how))
    dense = teacher(task.model) if how.get("tuned") else None
    palettizer = KMeansPalettizer(task.model, config)
    with expected_warnings():
        if "algorithm" in how:
            palettizer.calibrate(
                task.batches,
                sequential=how.get("sequential", False),
                loss=task.loss if how.get("guided") else None,
            )
        model = palettizer.prepare(task.batches[0])
        if how.get("sensitive"):
            weigh(palettizer, task)
        if dense is not None:
            tuned(palettizer, model, dense, task, how["tuned"])
    assert palettizer.report is not None
    return model, palettizer.report.bits_per_palettized_weight


def _by_coreai_opt(case: Case, how: dict[str, Any], task: Task) -> tuple[nn.Module, float]:
    import coreai_opt.palettization as peer
    import coreai_opt.palettization.spec as grain

    logging.getLogger("coreai_opt").setLevel(logging.ERROR)
    granularity = (
        grain.PerGroupedChannelGranularity(axis=0, group_size=case.group)
        if case.group
        else grain.PerTensorGranularity()
    )
    spec = peer.PalettizationSpec(n_bits=case.bits, granularity=granularity)
    wanted = peer.ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec})
    layers = nn.Linear | nn.Conv1d | nn.Conv2d
    # Its default are the operations that ours palettizes here; a tied embedding stays dense.
    names = {
        name: wanted if isinstance(module, layers) else None
        for name, module in task.model.named_modules()
        if name and (isinstance(module, layers) or not list(module.children()))
    }
    bits, plan = planned_bits(case, task)
    config = peer.KMeansPalettizerConfig(global_config=None, module_name_configs=names)
    palettizer = peer.KMeansPalettizer(task.model, config)
    model = palettizer.prepare(task.batches[0])
    if how.get("sensitive"):
        weigh(palettizer, task)
    if different := peer_palettized(model) ^ plan:
        raise RuntimeError(f"coreai-opt and we palettize different weights: {sorted(different)}")
    return model, bits


def planned_bits(case: Case, task: Task) -> tuple[float, set[str]]:
    """Return bits per palettized weight as our plan counts them, and the names of those weights.

    It holds for coreai-opt too, whose indices and tables are of the same number and dtypes.
    """
    from palette_core import KMeansPalettizer, KMeansPalettizerConfig

    config = KMeansPalettizerConfig.from_dict(config_of(case, {}))
    with expected_warnings():
        plan = KMeansPalettizer(task.model, config).make_plan(task.batches[0])
    bits = sum(
        math.prod(tensor.layout.index_shape) * case.bits
        + math.prod(tensor.layout.lut_shape(2**case.bits)) * tensor.dtype.itemsize * 8
        for tensor in plan
    )
    return bits / sum(math.prod(t.shape) for t in plan), {t.name for t in plan}


@contextlib.contextmanager
def expected_warnings() -> Iterator[None]:
    """Be silent on groups that do not divide a layer, not on layers that get k-means instead."""
    from palette_core.errors import PaletteWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PaletteWarning)
        warnings.filterwarnings("default", ".*palettized by k-means", PaletteWarning)
        yield


def peer_palettized(model: nn.Module) -> set[str]:
    """Return the names of weights that coreai-opt has palettized."""
    return {
        f"{name}.{state}"
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module)
        for state, chain in module.parametrizations.items()
        if not all(step.is_disabled() for step in chain)
    }


def weigh(palettizer: Any, task: Task) -> None:
    """Cluster again with squared gradients as importance."""
    with palettizer.calibration_mode(loss_fn=task.loss) as calibrating:
        for batch in task.batches:
            calibrating.step(task.model(*batch), batch)


def missing(method: str) -> str | None:
    """Say what a method needs that is not here."""
    how = METHODS[method] or {}
    if how.get("peer"):
        return None if importlib.util.find_spec("coreai_opt") else "coreai-opt is not installed"
    if how.get("sensitive"):
        from palette_core import KMeansPalettizer

        if not hasattr(KMeansPalettizer, "calibration_mode"):
            return "this palette_core has no calibration_mode"
    return None


def config_of(case: Case, how: dict[str, Any]) -> dict[str, Any]:
    granularity: dict[str, Any] = {"type": "per_tensor"}
    if case.group:
        granularity = {"type": "per_grouped_channel", "group_size": case.group}
    spec = {
        "n_bits": case.bits,
        "granularity": granularity,
        "algorithm": how.get("algorithm"),
        "enable_per_channel_scale": how.get("scale", False),
        "training_strategy": "tables" if how.get("tuned") else "frozen",
    }
    types = {name: {"op_state_spec": {"weight": spec}} for name in _TYPES[case.model]}
    return {"kmeans_palettization_config": {"global_config": None, "module_type_configs": types}}


_TYPES = {
    "smollm2": ("torch.nn.Linear",),
    "whisper": ("torch.nn.Linear", "torch.nn.Conv1d"),
    "minilm": ("torch.nn.Linear",),
    "effnet": ("torch.nn.Linear", "efficientnet_lite_pytorch.utils.Conv2dStaticSamePadding"),
}
