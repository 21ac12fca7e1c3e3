"""From a prepared model to the packed weights that a backend takes, and to its file."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from palette_core._common.files import atomic_path
from palette_core.errors import BackendError
from palette_core.model.snapshot import ModelSnapshot
from palette_core.palettizer import life_cycle
from palette_core.palettizer.functions import (
    MAIN,
    Asked,
    checked_metadata,
    inputs_for,
    make_request,
    of_model,
)
from palette_core.palettizer.life_cycle import Action, State
from palette_core.palettizer.palettized_weight import PalettizedWeight
from palette_core.palettizer.parts.asked import check_beside, check_parts
from palette_core.palettizer.parts.files import check_folder, write_manifest
from palette_core.palettizer.parts.making import make_parts
from palette_core.palettizer.parts.telling import stored_weights, warn_of
from palette_core.palettizer.targets import ExportBackend, Target, find_target
from palette_core.palettizer.training_session import complete_training
from palette_core.planning import refusals
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.export_requests import ExportRequest
from palette_core.storage.folding import fold
from palette_core.storage.mapped_files import WeightFolder
from palette_core.storage.pack import pack
from palette_core.storage.packed_weight import PackedWeight
from palette_core.storage.sites import PaletteSite, palette_sites
from palette_core.storage.traced_weights import traces_weights


def finalize(
    model: nn.Module, target: Target, catalog: Catalog, *, mmap_dir: Path | None = None
) -> nn.Module:
    """Pack a prepared model's weights in place, and let the backend give them its form.

    Raises:
        StateError: the model is not prepared, or in training or calibration mode.
        BackendError: the backend cannot take a tensor, or ``mmap_dir``; the model is as before.
        OSError: a file cannot be written in ``mmap_dir``; the model is as before.
    """
    if mmap_dir is not None and not target.entry.supports_mmap:
        raise BackendError(f"mmap_dir is not supported by backend {target.name!r}; leave it out")
    life_cycle.check(Action.FINALIZE, model)
    _refuse_unfit(model, target)
    folder = None if mmap_dir is None else WeightFolder(mmap_dir)
    with _snapshot(model, target), folder or contextlib.nullcontext():
        return _finalized(model, target, catalog, folder)


def _finalized(
    model: nn.Module, target: Target, catalog: Catalog, folder: WeightFolder | None = None
) -> nn.Module:
    prepared = palette_sites(model, PalettizedWeight)
    complete_training(prepared, catalog)
    packed = pack(prepared, [site.palette.palettized() for site in prepared], folder)
    finalized = target.backend.finalize(model, packed)
    done = State.UNPREPARED if target.entry.leaves_dense else State.FINALIZED
    life_cycle.mark(finalized, done)
    return finalized


def dequantize(model: nn.Module, catalog: Catalog) -> nn.Module:
    """Make plain dense weights of a prepared or finalized model's palettes, in place.

    Raises:
        StateError: the model is neither, or in training or calibration mode.
        WeightFileError: a file that a finalized weight is mapped from is missing or damaged.
    """
    if life_cycle.check(Action.FOLD, model) is State.PREPARED:
        return finalize(model, find_target(catalog, ExportBackend.Torch), catalog)
    folded = fold(model)
    life_cycle.mark(folded, State.UNPREPARED)
    return folded


def export(
    model: nn.Module,
    target: Target,
    catalog: Catalog,
    path: Path,
    asked: Asked,
) -> Path:
    """Finalize where that is still to be done, and write the backend's file.

    Raises:
        StateError: the model is neither prepared nor finalized.
        BackendError: the backend cannot take a tensor or what is asked for, ``path`` lacks its
            suffix, or what stands there is none of its files.
        WeightFileError: a file that a finalized weight is mapped from is missing or damaged.
        OSError: the folder of ``path`` does not exist or cannot be written to, or the disk is full.
            After any error the model, and what stood at ``path``, are as before.
    """
    if path.suffix != target.entry.suffix:
        raise BackendError(f"backend {target.name!r} writes {target.entry.suffix}, got {path}")
    _check_state(model, target)
    request = make_request(asked, model, target)
    if not target.is_ours:
        _refuse_offloaded(model, target)
    target.backend.check_place(path)
    # Whatever fails, the model is as before, and so is what stands at the path.
    before = _snapshot(model, target)
    with atomic_path(path, beside=target.entry.beside) as fresh, before:
        with _finalized_for(model, target, catalog, before) as final:
            if request is not None:
                request = of_model(request, final)
            inputs = inputs_for(target, asked.example_inputs)
            _write(final, target, request, (inputs, asked.dynamic_shapes), fresh)
        _refuse_undeclared(target, [fresh])
    return path


def export_parts(
    model: nn.Module,
    target: Target,
    catalog: Catalog,
    folder: Path,
    asked: Asked,
    said: Collection[str] = (),
) -> Path:
    """Finalize where that is still to be done, and write a file for each part in a folder.

    What a plan for parts has ``said`` is not told again.

    Raises:
        StateError: the model is neither prepared nor finalized.
        BackendError: as of `export`, naming the part; or the folder is none of parts.
        OSError: as of `export`; files are there all or none.

    Warns:
        PaletteWarning: of weights in several files or in none, and of what no file computes.
    """
    check_beside(asked)
    if asked.metadata is not None and not target.entry.takes_functions:
        raise BackendError(f"backend {target.name!r} takes no metadata")
    _check_state(model, target)
    given = check_parts(asked.parts, model, target)
    metadata = checked_metadata(asked.metadata)
    _refuse_offloaded(model, target)
    check_folder(folder, target)
    inputs = inputs_for(target, asked.example_inputs)
    before = _snapshot(model, target)
    with atomic_path(folder) as fresh, before:
        fresh.mkdir()
        with _finalized_for(model, target, catalog, before) as final:
            parts = make_parts(given, final, inputs, stored_weights(final))
            for name, part in parts.functions.items():
                request = ExportRequest({MAIN: part}, metadata=metadata)
                file = fresh / f"{name}{target.entry.suffix}"
                how = (part.inputs, part.dynamic_shapes)
                takes = request if target.entry.takes_functions else None
                try:
                    _write(part.module or final, target, takes, how, file, of=final)
                except BackendError as error:
                    raise BackendError(f"part {name!r}: {error}") from error
        _refuse_undeclared(target, [fresh / f"{name}{target.entry.suffix}" for name in given])
        write_manifest(parts, fresh, target)
    warn_of(parts, said)
    return folder


def _check_state(model: nn.Module, target: Target) -> None:
    if not traces_weights(model):
        life_cycle.check(Action.EXPORT, model)
    elif target.is_ours:
        raise BackendError(
            f"backend {target.name!r} needs the palettes as modules, and this model is a graph "
            "that decodes them; give it the finalized model that the graph was made of"
        )


@contextlib.contextmanager
def _finalized_for(
    model: nn.Module, target: Target, catalog: Catalog, before: ModelSnapshot
) -> Iterator[nn.Module]:
    """Yield the model as the backend is to write it."""
    foreign = palette_sites(model, PackedWeight)
    if palette_sites(model, PalettizedWeight):
        _refuse_unfit(model, target)
        model = _finalized(model, target, catalog)
    with _left_alone(model, target, before), _as_stored(foreign):
        _check_stored(model, target)
        yield model


def _write(
    model: nn.Module,
    target: Target,
    request: ExportRequest | None,
    main: tuple[Any, Any],
    fresh: Path,
    *,
    of: nn.Module | None = None,
) -> None:
    """Let the backend write one file: of a request, or of ``model``, inputs and dynamic shapes."""
    if request is not None:
        written = target.backend.export_functions(of or model, request, fresh)
    else:
        written = target.backend.export(model, main[0], fresh, main[1])
    if not fresh.exists():
        raise BackendError(
            f"backend {target.name!r} wrote {written} instead of the path that it was given"
        )


def _refuse_offloaded(model: nn.Module, target: Target) -> None:
    """Refuse a model with tensors on the meta device, which have no values that a file could hold.

    Raises:
        BackendError: naming the first of them, a palettized weight by its own name.
    """
    packed = {
        id(part): site.name for site in palette_sites(model) for part in site.palette.buffers()
    }
    tensors = [*model.named_buffers(), *model.named_parameters()]
    names = (packed.get(id(t), name) for name, t in tensors if t.is_meta and t.numel())
    lacking = list(dict.fromkeys(names))
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise BackendError(
            f"backend {target.name!r} cannot export {lacking[0]}{more}: on the meta device they "
            "hold no values. They are offloaded, and fetched by hooks for the time of a call, or "
            "were never loaded; load the model whole, without offloading (device_map=None)"
        )


def _refuse_unfit(model: nn.Module, target: Target) -> None:
    prepared = palette_sites(model, PalettizedWeight)
    sentences = refusals([site.palette.plan for site in prepared], target.backend)
    if sentences:
        raise BackendError(f"backend {target.name!r} cannot take: " + "; ".join(sentences))


def _snapshot(model: nn.Module, target: Target) -> ModelSnapshot:
    """Return what puts a model back, with values that packing and the backend may write to.

    Dense originals are not among them: no backend sees them.
    """
    sites = palette_sites(model)
    copied = [tensor for site in sites for tensor in site.palette.changeable()]
    if not target.is_ours:
        chains = [
            chain for site in sites for place in site.places for chain in place.chain.modules()
        ]
        inside = {id(module) for module in chains}
        for module in model.modules():
            if id(module) not in inside:
                copied += [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return ModelSnapshot(model, copied)


@contextlib.contextmanager
def _left_alone(model: nn.Module, target: Target, before: ModelSnapshot) -> Iterator[None]:
    """Leave a finalized model as it is, whatever the backend does to it."""
    if target.is_ours:
        yield
        return
    packed = [tensor for site in palette_sites(model) for tensor in site.palette.changeable()]
    now = ModelSnapshot(model, packed)
    try:
        yield
    finally:
        now.restore()
        before.restore_values()


@contextlib.contextmanager
def _as_stored(finalized: Sequence[PaletteSite[PackedWeight]]) -> Iterator[None]:
    """Trace what was finalized before, perhaps for another backend, as a checkpoint's."""
    traced = [(site.palette, site.palette.traced_as) for site in finalized]
    try:
        for palette, _ in traced:
            palette.traced_as = None
        yield
    finally:
        for palette, function in traced:
            palette.traced_as = function


def _refuse_undeclared(target: Target, fresh: Sequence[Path]) -> None:
    """Refuse files that would be lost, because the backend does not say that it writes them."""
    suffixes = (target.entry.suffix, *target.entry.beside)
    declared = {path.with_suffix(suffix).name for path in fresh for suffix in suffixes}
    found = {entry.name for entry in fresh[0].parent.iterdir()}
    if found != declared:
        more = ", ".join(sorted(found - declared)) or "nothing"
        fewer = ", ".join(sorted(declared - found)) or "nothing"
        raise BackendError(
            f"backend {target.name!r} wrote {more} that its entry does not declare in beside, and "
            f"left out {fewer} of what it does"
        )


def _check_stored(model: nn.Module, target: Target) -> None:
    for site in palette_sites(model, PackedWeight):
        site.palette.check_file()
        form, forms = site.palette.form.name, target.entry.stored_forms
        if forms is not None and form not in forms:  # out of a checkpoint, by no plan
            raise BackendError(
                f"{site.name} is stored as {form!r}, and backend {target.name!r} takes only "
                f"{', '.join(forms)}; dequantize() the model, and prepare it for this backend"
            )
