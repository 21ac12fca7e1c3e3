"""A dense checkpoint in, a palettized one out: tensor by tensor, and on from where it stopped."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from palette_core._common.warned import warn
from palette_core.config import KMeansPalettizerConfig
from palette_core.config.model import ConfigLike
from palette_core.engine.cluster_model import fallback_sentences
from palette_core.engine.executor import Executor
from palette_core.engine.results import Report, TensorReport
from palette_core.errors import CalibrationError, CheckpointError, PlanError
from palette_core.planning.make import OnIncompatible
from palette_core.plugins.catalog import Catalog, get_catalog
from palette_core.statistics.activations import batches_of
from palette_core.streaming.batches import BlockCalibration
from palette_core.streaming.job import Sealed, identity
from palette_core.streaming.offered import offered_skeleton
from palette_core.streaming.planning import CheckpointPlan, plan_source
from palette_core.streaming.running import Run
from palette_core.streaming.skeleton import Skeleton
from palette_core.streaming.source import SourceCheckpoint, open_source
from palette_core.streaming.workplace import Workplace, alone_in_folder

_FULL = (errno.ENOSPC, errno.EDQUOT)


def palettize_checkpoint(
    src: str | Path,
    config: ConfigLike,
    out: str | Path,
    *,
    on_incompatible: OnIncompatible = "skip",
    num_workers: int = 1,
    progress: bool | None = None,
    calibration: Iterable[Any] | None = None,
    skeleton: nn.Module | Skeleton | None = None,
    compensate: bool = True,
) -> Report:
    """Palettize a checkpoint into a folder of safetensors files, without building a model.

    Weights are read from memory-mapped files and clustered one by one (by each worker), so memory
    does not grow with the checkpoint. What is finished is kept in the folder: after a kill or an
    error the same call goes on from there, and writes the same files byte for byte.

    Args:
        src: a folder with one file of weights or an index of several, as Hugging Face's libraries
            write it; or the index, or the file. Safetensors, or what ``torch.save`` writes of a
            state dictionary (``.bin``, ``.pt``, ``.pth``, ``.ckpt``), of which no code is run;
            a folder that holds both is read by the first.
        config: the rules, see `plan_checkpoint`; None is 4 bits per tensor.
        out: folder to write: packed checkpoints for the shards of the source, their index, a
            manifest, and what lies beside the weights in the folder of the source, such as
            ``config.json`` and the tokenizer. New, empty, or of an earlier try.
        on_incompatible: what to do with a weight whose shape does not fit its spec; see
            `KMeansPalettizer.make_plan`.
        num_workers: how many weights to cluster at a time: 1 in this process, more in workers of
            joblib, whose backend a surrounding ``joblib.parallel_config`` chooses; all of them
            see the files of ``src`` and ``out`` under the same names.
        progress: None shows a bar on a terminal.
        calibration: model inputs, as `KMeansPalettizer.calibrate` takes them, for algorithms that
            go by the inputs of layers: as its sequential mode does, but with one block of the
            model in memory at a time, whose inputs are kept in files below ``out``.
        skeleton: the model that takes them, with everything on the meta device that the checkpoint
            has values for; None takes what an installed distribution builds, by the entry point
            group ``palette_core.skeletons``.
        compensate: let weights make good for errors of their inputs too.

    Raises:
        FileNotFoundError: there is no checkpoint, or a file of it is missing.
        CheckpointError: it is not clear which files are meant, one is not whole, two hold a tensor
            of one name, the weights are quantized already; or ``out`` holds something else, was
            begun with another source or config, or another run writes in it.
        PlanError: nothing is to be palettized, or a weight cannot be stored as the config asks.
        TypeError: a batch is no model input, or ``skeleton`` no model.
        WeightError: a weight is NaN or infinite.
        CalibrationError: the model failed on a batch, there are none, or ``skeleton`` is alone.
        WorkerError: workers were killed again and again.
        OSError: a file cannot be read, or written: the disk is full.
    """
    config = KMeansPalettizerConfig.of(config).checked_copy()
    executor, out = Executor(num_workers, progress=progress), Path(out)
    source = open_source(src)
    planned = plan_source(source, config, executor.catalog, on_incompatible)
    folder = source.path if source.path.is_dir() else source.path.parent
    looked = _calibration(folder, calibration, skeleton, compensate=compensate)
    _check(source, planned, looked)
    with alone_in_folder(out, source):
        about = identity(source, config, planned, executor.catalog)
        if looked is not None:
            about["calibration"] = looked.identity()
        seconds: dict[str, float] = {}
        try:
            place = Workplace(out, source, about)
            if place.finished is None:
                run = Run(source, planned, config, place, executor)
                run.find_finished()
                if looked is not None:
                    found = run.calibrated(looked)
                    missing = _needy(planned, executor.catalog) - run.by_data
                    reasons = dict.fromkeys(sorted(missing), "the model has no such weight")
                    warn(*fallback_sentences({**found, **reasons}), stacklevel=2)
                seconds = run.finish(about)
        except OSError as error:
            if error.errno in _FULL:
                raise OSError(
                    error.errno,
                    f"{error.strerror}; what is finished is kept in {out}, and the same command "
                    "goes on from there",
                    error.filename or str(out),
                ) from error
            raise
        assert place.finished is not None
        return _report(planned, place.finished, seconds)


def _calibration(
    folder: Path,
    batches: Iterable[Any] | None,
    skeleton: nn.Module | Skeleton | None,
    *,
    compensate: bool,
) -> BlockCalibration | None:
    if batches is None and skeleton is None:
        return None
    if batches is None:
        raise CalibrationError("skeleton is of no use without calibration; give both, or neither")
    if skeleton is None:
        skeleton = offered_skeleton(folder)
    model = Skeleton(skeleton) if isinstance(skeleton, nn.Module) else skeleton
    if not isinstance(model, Skeleton):
        raise TypeError(f"skeleton must be a torch.nn.Module or a Skeleton, got {model!r}")
    return BlockCalibration(batches_of(batches), model, compensate)


def _needy(planned: CheckpointPlan, catalog: Catalog) -> set[str]:
    """Return the weights whose algorithm needs moments, by the names of the checkpoint."""
    return {
        name
        for name, item in planned.by_stored_name().items()
        if catalog.clusterers.get(item.algorithm).needs_moments
    }


def _check(
    source: SourceCheckpoint, planned: CheckpointPlan, looked: BlockCalibration | None
) -> None:
    plan = planned.plan
    if not plan.tensors:
        raise PlanError(f"{source.path}: {' '.join(plan.warnings)}; nothing is written")
    names = planned.by_stored_name()
    for span in source.spans():
        if span.name.rpartition(".")[0] in names:
            raise CheckpointError(
                f"{span.path}: {span.name} has a name as parts of the palettized "
                f"{span.name.rpartition('.')[0]} have; leave that dense, or rename one"
            )
    needy = sorted(_needy(planned, get_catalog()))
    if looked is not None and not needy:
        raise PlanError(
            "calibration is of no use: the algorithm of no weight goes by the inputs of its layer; "
            "ask for one that does, or leave it out"
        )
    missing = () if looked is not None else needy
    reasons = dict.fromkeys(missing, "a checkpoint without its model gives none")
    warn(*plan.warnings, *fallback_sentences(reasons), stacklevel=3)


def _report(planned: CheckpointPlan, manifest: Sealed, seconds: Mapping[str, float]) -> Report:
    rows = []
    for name in planned.by_stored_name():
        told = manifest.value["tensors"][name]["palettized"]
        rows.append(TensorReport.from_dict({**told, "seconds": seconds.get(name, 0.0)}))
    return Report(tuple(rows), planned.plan.skipped, planned.plan.coverage)
