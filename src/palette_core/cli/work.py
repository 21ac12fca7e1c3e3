"""The commands that palettize: run, report, write, and check what was written."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from palette_core._common.files import size_on_disk
from palette_core._common.pytrees import floating
from palette_core.cli.exporting import Target, in_words
from palette_core.cli.factories import FactoryError, Loaded, load_factory
from palette_core.cli.going_on import going_on_later
from palette_core.config import KMeansPalettizerConfig
from palette_core.errors import CheckpointError
from palette_core.model import evaluation_mode
from palette_core.palettizer import KMeansPalettizer
from palette_core.reporting import console as show
from palette_core.storage.bits import bits_per_weight, model_bits
from palette_core.storage.model_checkpoints import load_checkpoint


def check_report_files(paths: Sequence[Path]) -> None:
    """Refuse, before any work, files that a report cannot be written into.

    Raises:
        PaletteError: it cannot.
    """
    if paths:
        from palette_core.reporting import files

        for path in paths:
            files.check_report_file(path)


def check_picture_name(plot: Path | None) -> None:
    """Refuse, before any work, a picture that cannot be drawn.

    Raises:
        PaletteError: it cannot.
    """
    if plot is not None:
        from palette_core.reporting.pictures import check_picture

        check_picture(plot)


def check_calibration(calibration: str | None, options: Mapping[str, Any]) -> None:
    """Refuse options that say how to calibrate where there is nothing to calibrate with.

    Raises:
        FactoryError: there is one.
    """
    given = [name for name, value in options.items() if value]
    if calibration is None and given:
        raise FactoryError(
            f"{given[0]} is about calibration; give batches with --calibration FACTORY"
        )


def palettize(
    loaded: Loaded,
    config: KMeansPalettizerConfig,
    target: Target,
    *,
    num_workers: int,
    sensitivities: Path | None,
    trust_sensitivities: bool,
    calibrate: Mapping[str, Any] | None,
    reports: Sequence[Path],
    evaluate: Callable[[Any], Any] | None,
    as_json: bool,
) -> None:
    """Calibrate where asked to, palettize, write, report.

    ``calibrate`` holds arguments of `KMeansPalettizer.calibrate`.
    """
    palettizer = KMeansPalettizer(loaded.model, config)
    dense_bits, _ = model_bits(loaded.model)
    dynamic_shapes = target.dynamic_shapes(loaded)
    arguments = target.arguments(loaded)
    started = time.perf_counter()
    if calibrate is not None:
        palettizer.calibrate(**calibrate)
    with going_on_later(target.path) as work_folder:
        palettizer.prepare(
            loaded.example_inputs,
            sensitivities,
            num_workers,
            backend=target.backend,
            backend_options=target.options,
            dynamic_shapes=dynamic_shapes,
            parts=arguments.get("parts"),
            trust_sensitivities=trust_sensitivities,
            work_folder=work_folder,
        )
        prepared = time.perf_counter()
        if reports:
            palettizer.measure(loaded.example_inputs)
        scores = {} if evaluate is None else scores_of(evaluate, loaded.model)
        bits = bits_per_weight(loaded.model)
        writing = time.perf_counter()
        written = target.write(palettizer, arguments)
    totals = {
        "bits_per_weight": bits,
        "dense_bytes": dense_bits // 8,
        "file_bytes": target.size(written),
        "prepare_seconds": prepared - started,
        "export_seconds": time.perf_counter() - writing,
        "file": str(written),
    }
    _report(palettizer, {**totals, **({"scores": scores} if scores else {})}, reports, as_json)


def demo(
    factory: str | None,
    inputs: Sequence[str],
    config: KMeansPalettizerConfig | None,
    output: Path,
    *,
    num_workers: int,
    reports: Sequence[Path],
    as_json: bool,
) -> None:
    """Palettize a model, write a packed checkpoint, load it back, and compare outputs."""
    loaded = _load(factory, inputs)
    config = config or KMeansPalettizerConfig.presets.w4_all()
    fresh = _load(factory, inputs).model
    before = loaded.run()
    dense_bits, _ = model_bits(loaded.model)
    palettizer = KMeansPalettizer(loaded.model.eval(), config)
    started = time.perf_counter()
    prepared = palettizer.prepare(loaded.example_inputs, num_workers=num_workers)
    seconds = time.perf_counter() - started
    after = loaded.run(prepared)
    bits = bits_per_weight(prepared)
    if reports:
        palettizer.measure(loaded.example_inputs)
    written = palettizer.export(output, backend="packed")
    again = loaded.run(load_checkpoint(written, fresh.eval()))
    totals = {
        "bits_per_weight": bits,
        "dense_bytes": dense_bits // 8,
        "file_bytes": size_on_disk(written),
        "cosine_to_dense": _cosine(before, after),
        "prepare_seconds": seconds,
        "loaded_outputs_equal": _equal(after, again),
        "file": str(written),
    }
    _report(palettizer, totals, reports, as_json)
    if not totals["loaded_outputs_equal"]:
        raise CheckpointError(
            "outputs of the loaded checkpoint differ from the prepared model's; the model's "
            "outputs may be random, or depend on state outside parameters and buffers"
        )


def _load(factory: str | None, inputs: Sequence[str]) -> Loaded:
    if factory is not None:
        loaded = load_factory(factory, inputs)
        return Loaded(loaded.model.eval(), loaded.example_inputs)
    from palette_core.demo.minilm import load_minilm, tokenize
    from palette_core.demo.sentences import SENTENCES

    return Loaded(load_minilm(), tokenize(SENTENCES))


def scores_of(evaluate: Callable[[Any], Any], model: Any) -> dict[str, float]:
    """Call an evaluation on a model, and return its numbers by name.

    Raises:
        FactoryError: it failed, or returned something else.
    """
    name = getattr(evaluate, "__name__", "score")
    try:
        with torch.no_grad(), evaluation_mode(model):
            found = evaluate(model)
        scores = found if isinstance(found, Mapping) else {name: found}
        made = {str(key): float(value) for key, value in scores.items()}
    except (Exception, SystemExit) as error:
        raise FactoryError(
            f"evaluation {name} has to return a number, or numbers by name: "
            f"{type(error).__name__}: {error}"
        ) from error
    wrong = {key: value for key, value in made.items() if not math.isfinite(value)}
    if wrong or not made:
        raise FactoryError(f"evaluation {name} returned {wrong or 'nothing'}; numbers are wanted")
    return made


def _report(
    palettizer: KMeansPalettizer, totals: dict[str, Any], paths: Sequence[Path], as_json: bool
) -> None:
    report = palettizer.report
    if report is None:
        raise AssertionError("a prepared palettizer has a report")
    scores = totals.pop("scores", {})
    report = replace(report, run=replace(report.run, scores=scores))
    totals = {"bits_per_palettized_weight": report.bits_per_palettized_weight, **totals, **scores}
    if paths:
        from palette_core.reporting.files import write_reports

        write_reports(report, paths)
        totals["report"] = ", ".join(map(str, paths))
    if as_json:
        show.print_json({**report.to_dict(views=False), "totals": totals})
        return
    show.report(report)
    show.totals(in_words(totals))


def _cosine(a: Any, b: Any) -> float | None:
    """Return the mean cosine between rows of corresponding outputs."""
    cosines = [
        F.cosine_similarity(x.float().flatten(1), y.float().flatten(1))
        for x, y in zip(floating(a), floating(b), strict=True)
        if x.dim() > 1
    ]
    return float(torch.cat(cosines).mean()) if cosines else None


def _equal(a: Any, b: Any) -> bool:
    pairs = list(zip(floating(a), floating(b), strict=True))
    return bool(pairs) and all(torch.equal(x, y) for x, y in pairs)
