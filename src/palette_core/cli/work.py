"""The commands that palettize: run, report, write, and check what was written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palette_core.bits import bits_per_weight, model_bits
from palette_core.checkpoint import load_checkpoint
from palette_core.cli import show
from palette_core.cli.factories import FactoryError, Loaded, load_factory
from palette_core.config import (
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    OpKMeansPalettizerConfig,
)
from palette_core.errors import CheckpointError
from palette_core.palettizer import KMeansPalettizer
from palette_core.plugins import get_catalog


def check_output(path: Path, backend: str, plot: Path | None) -> None:
    """Refuse, before any work, what cannot be written.

    Raises:
        FactoryError: the name has not the backend's suffix, or a folder stands there.
        PaletteError: the picture cannot be drawn.
    """
    if plot is not None:
        from palette_core.plot import check_picture

        check_picture(plot)
    suffix = get_catalog().backend(backend).suffix
    if path.suffix != suffix:
        raise FactoryError(f"backend {backend!r} writes {suffix} files, got --output {path}")
    if path.is_dir() and backend == "torch":
        raise FactoryError(f"--output {path} is a folder")


def palettize(
    loaded: Loaded,
    config: KMeansPalettizerConfig,
    output: Path,
    *,
    backend: str,
    num_workers: int,
    sensitivities: Path | None,
    batches: Sequence[Any] | None,
    sequential: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Calibrate where batches are given, palettize, write, report."""
    palettizer = KMeansPalettizer(loaded.model, config)
    dense_bits, _ = model_bits(loaded.model)
    started = time.perf_counter()
    if batches is not None:
        palettizer.calibrate(batches, sequential=sequential)
    palettizer.prepare(loaded.example_inputs, sensitivities, num_workers)
    prepared = time.perf_counter()
    bits = bits_per_weight(loaded.model)
    written = palettizer.export(output, loaded.example_inputs, backend=backend)
    totals = {
        "bits_per_weight": bits,
        "dense_bytes": dense_bits // 8,
        "file_bytes": _size_on_disk(written),
        "prepare_seconds": prepared - started,
        "export_seconds": time.perf_counter() - prepared,
        "file": str(written),
    }
    _report(palettizer, totals, plot, as_json)


def demo(
    factory: str | None,
    inputs: Sequence[str],
    config: KMeansPalettizerConfig | None,
    output: Path,
    *,
    num_workers: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Palettize a model, write a packed checkpoint, load it back, and compare outputs."""
    loaded = _load(factory, inputs)
    config = config or demo_config(loaded.model)
    fresh = _load(factory, inputs).model
    before = loaded.run()
    dense_bits, _ = model_bits(loaded.model)
    palettizer = KMeansPalettizer(loaded.model.eval(), config)
    started = time.perf_counter()
    prepared = palettizer.prepare(loaded.example_inputs, num_workers=num_workers)
    seconds = time.perf_counter() - started
    after = loaded.run(prepared)
    bits = bits_per_weight(prepared)
    written = palettizer.export(output, backend="torch")
    again = loaded.run(load_checkpoint(written, fresh.eval()))
    totals = {
        "bits_per_weight": bits,
        "dense_bytes": dense_bits // 8,
        "file_bytes": _size_on_disk(written),
        "cosine_to_dense": _cosine(before, after),
        "prepare_seconds": seconds,
        "loaded_outputs_equal": _equal(after, again),
        "file": str(written),
    }
    _report(palettizer, totals, plot, as_json)
    if not totals["loaded_outputs_equal"]:
        raise CheckpointError(
            "outputs of the loaded checkpoint differ from the prepared model's; the model's "
            "outputs may be random, or depend on state outside parameters and buffers"
        )


def demo_config(model: nn.Module) -> KMeansPalettizerConfig:
    """Return 4 bits in groups of 16 channels, embeddings included.

    Embeddings are grouped along their width: a vocabulary has no handy divisors.
    """
    config = KMeansPalettizerConfig.presets.w4()
    if not any(isinstance(module, nn.Embedding) for module in model.modules()):
        return config
    embedding = ModuleKMeansPalettizerConfig.presets.w4(axis=1).op_state_spec
    config.global_config.op_type_config = {
        "embedding": OpKMeansPalettizerConfig(op_state_spec=embedding)
    }
    return config


def _load(factory: str | None, inputs: Sequence[str]) -> Loaded:
    if factory is not None:
        loaded = load_factory(factory, inputs)
        return Loaded(loaded.model.eval(), loaded.example_inputs)
    from palette_core.demo.minilm import load_minilm, tokenize
    from palette_core.demo.sentences import SENTENCES

    return Loaded(load_minilm(), tokenize(SENTENCES))


def _report(
    palettizer: KMeansPalettizer, totals: dict[str, Any], plot: Path | None, as_json: bool
) -> None:
    report = palettizer.report
    if report is None:
        raise AssertionError("a prepared palettizer has a report")
    totals = {"bits_per_palettized_weight": report.bits_per_palettized_weight, **totals}
    if plot is not None:
        from palette_core.plot import plot_report

        plot_report(report, plot)
        totals["plot"] = str(plot)
    if as_json:
        show.print_json({**report.to_dict(), "totals": totals})
        return
    show.report(report)
    show.totals({_WORDS.get(k, k): _in_words(k, v) for k, v in totals.items()})


_WORDS = {
    "bits_per_palettized_weight": "bits per weight, palettized ones",
    "bits_per_weight": "bits per weight, whole model",
    "dense_bytes": "weights before",
    "file_bytes": "file",
    "cosine_to_dense": "mean cosine to the dense outputs",
    "prepare_seconds": "seconds to palettize",
    "export_seconds": "seconds to write",
    "loaded_outputs_equal": "outputs after loading back equal",
    "file": "written",
    "plot": "picture",
}


def _in_words(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return show.size(value)
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.4f}" if key == "cosine_to_dense" else f"{value:.2f}"
    return str(value)


def _size_on_disk(path: Path) -> int:
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size


def _outputs(value: Any) -> list[Tensor]:
    """Return the floating tensors of a model's output, in order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _outputs(item)]
    return []


def _cosine(a: Any, b: Any) -> float | None:
    """Return the mean cosine between rows of corresponding outputs."""
    cosines = [
        F.cosine_similarity(x.float().flatten(1), y.float().flatten(1))
        for x, y in zip(_outputs(a), _outputs(b), strict=True)
        if x.dim() > 1
    ]
    return float(torch.cat(cosines).mean()) if cosines else None


def _equal(a: Any, b: Any) -> bool:
    pairs = list(zip(_outputs(a), _outputs(b), strict=True))
    return bool(pairs) and all(torch.equal(x, y) for x, y in pairs)
