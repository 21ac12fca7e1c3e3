"""The palettizer: prepare a model, train it, finalize and export it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, final

from torch import Tensor, nn

from palette_core._common.collecting import collecting_later
from palette_core._common.torch_state import torch_state_kept
from palette_core._common.warned import warn
from palette_core.config import KMeansPalettizerConfig
from palette_core.config.model import ConfigLike
from palette_core.engine.cluster_model import cluster_model
from palette_core.engine.executor import Executor
from palette_core.engine.kept import Kept, keeper_in
from palette_core.engine.results import Report, make_report, updated_report
from palette_core.engine.run_facts import Stopwatch, facts_of
from palette_core.engine.warming import warm_up_for
from palette_core.errors import BackendError, StateError
from palette_core.model import ExampleInputs, trace
from palette_core.model.graph import ModelGraph
from palette_core.model.traced_before import TracedBefore
from palette_core.operations import installed_operations
from palette_core.palettizer import life_cycle
from palette_core.palettizer.attaching import attach_palettes
from palette_core.palettizer.calibration import (
    CalibrationOptions,
    Results,
    calibration,
    sensitivities_of,
)
from palette_core.palettizer.calibration_session import Calibration
from palette_core.palettizer.exporting import dequantize, export, export_parts, finalize
from palette_core.palettizer.functions import Asked
from palette_core.palettizer.life_cycle import Action, State
from palette_core.palettizer.measuring import output_errors, with_errors
from palette_core.palettizer.parts.telling import planned_parts
from palette_core.palettizer.prepared_states import attach_stored
from palette_core.palettizer.targets import ExportBackend as ExportBackend  # noqa: PLC0414 - public
from palette_core.palettizer.targets import backend_for, find_target
from palette_core.palettizer.training_session import TrainingSession
from palette_core.planning import (
    OnIncompatible,
    Plan,
    check_backend_named,
    make_plan,
    refuse_program,
)
from palette_core.plugins.catalog import Catalog, get_catalog
from palette_core.plugins.export_requests import AnyPart, ExportFunction, Names
from palette_core.statistics.activations import Findings, InputCalibration, Loss, batches_of, look
from palette_core.storage.bits import model_bits
from palette_core.storage.sensitivity_files import save_sensitivities
from palette_core.storage.written_buffers import note_written

_log = logging.getLogger(__name__)


@final
class KMeansPalettizer:
    """Palettizes a model's weights as a config says.

    Args:
        model: the model; `prepare` changes it in place.
        config: the rules, also as a dictionary or the path of a YAML file; None is the documented
            default, 4 bits per tensor.

    Attributes:
        plan: after `prepare`: what was decided about every tensor.
        report: after `prepare`: sizes, signal-to-noise and seconds by tensor.

    Raises:
        TypeError: ``model`` is not a module, or ``config`` nothing that stands for one.
        ConfigError, FileNotFoundError: see `KMeansPalettizerConfig.of`.
    """

    def __init__(self, model: nn.Module, config: ConfigLike = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"Model must be a torch.nn.Module, got {type(model).__name__}")
        self._model = model
        self._config = KMeansPalettizerConfig.of(config)
        self._catalog: Catalog = get_catalog()
        self._session: TrainingSession | None = None
        self._doing: State | None = None
        self._looked: tuple[InputCalibration, Findings] | None = None
        self._traced: TracedBefore | None = None
        self._kept = Kept()
        self._watch = Stopwatch()
        self.plan: Plan | None = None
        self.report: Report | None = None

    @staticmethod
    def supported_modules() -> tuple[type[nn.Module], ...]:
        """Return the module types whose weights are palettized by default.

        Others are reached by asking: by operation type, by module type, or by
        ``module_state_spec``.
        """
        return installed_operations().default_modules()

    def make_plan(
        self,
        example_inputs: ExampleInputs,
        *,
        on_incompatible: OnIncompatible = "skip",
        backend: str | ExportBackend | None = None,
        backend_options: Mapping[str, Any] | None = None,
        dynamic_shapes: Any = None,
        parts: Mapping[str, AnyPart] | None = None,
    ) -> Plan:
        """Trace the model and decide about every tensor, changing nothing; arguments as `prepare`.

        Raises:
            TracingError: the model fails on the inputs.
            PlanError: see `planning.make_plan`.
            BackendError: ``parts`` are none; see `export`.
        """
        with torch_state_kept(), collecting_later():
            check_backend_named(
                backend, backend_options=backend_options, dynamic_shapes=dynamic_shapes,
                parts=parts,
            )  # fmt: skip
            target = (
                None if backend is None else find_target(self._catalog, backend, backend_options)
            )
            graph = self._graph(example_inputs)
            _log.info("traced: %d modules, %d tensors", len(graph.modules), len(graph.tensors))
            made = make_plan(
                graph,
                self._config,
                self._catalog,
                on_incompatible=on_incompatible,
                backend=None if target is None else target.backend,
            )
            if target is not None and parts is not None:
                asked = Asked(example_inputs, dynamic_shapes, parts=parts)
                return planned_parts(made, self._model, target, asked)
            if target is not None:
                refuse_program(self._model, example_inputs, target.backend, dynamic_shapes)
            return made

    def calibrate(
        self,
        batches: Iterable[Any],
        *,
        sequential: bool = False,
        compensate: bool = True,
        stages: Sequence[str] | None = None,
        held_out: Iterable[Any] = (),
        loss: Loss | None = None,
        output_groups: int = 4,
        folder: str | Path | None = None,
    ) -> None:
        """Gather second moments of the layers' inputs before `prepare`, without any gradient.

        Data-aware algorithms choose palettes by them; `calibration_mode`, which takes gradients,
        is another thing. The model runs on every batch, in evaluation mode; x xᵀ of what each
        planned weight is multiplied with is summed, in place of what an earlier call found.

        Args:
            batches: model inputs, each as the example inputs of `prepare`. No labels.
            sequential: take the moments stage by stage in `prepare`, from a model whose earlier
                stages are palettized already. The batches are kept until then.
            compensate: in sequential mode, let weights make good for errors of their inputs too.
            stages: names of the modules that are palettized one after the other; None takes the
                elements of the model's outermost module lists, and layers outside of them.
            held_out: batches by which each stage is judged: plain k-means replaces what is worse.
            loss: ``loss(output, batch)``, a scalar; its squared gradient with respect to a
                layer's outputs then weighs the moments (GuidedQuant). Needs a backward pass.
            output_groups: groups of output channels with moments of their own, with ``loss``.
            folder: an existing folder, to keep matrices in instead of in memory until `prepare`.

        Raises:
            StateError: the model is palettized already.
            TypeError: a batch is neither a tensor, a tuple nor a mapping.
            CalibrationError: there are no batches, the model or the loss failed on one,
                ``stages`` names no module, or ``folder`` is none.
            TracingError, PlanError: see `make_plan`; the first batch is the example.
            ClusteringError: an algorithm failed to warm up.
        """
        with torch_state_kept(), self._watch("calibrate"):
            life_cycle.check(Action.LOOK, self._model, self._doing)
            options = InputCalibration(
                batches_of(batches),
                sequential=sequential,
                compensate=compensate,
                stages=None if stages is None else tuple(stages),
                held_out=batches_of(held_out, "held-out"),
                loss=loss,
                output_groups=output_groups,
                folder=None if folder is None else Path(folder),
            )
            warm_up_for(self._config, self._catalog)
            self._traced = TracedBefore.unless_compiled(self._model, options.batches[0])
            plan = self.make_plan(options.batches[0])
            needy = [t for t in plan if self._catalog.clusterers.get(t.algorithm).needs_moments]
            self._looked = options, look(self._model, needy, options)

    def _graph(self, example_inputs: ExampleInputs) -> ModelGraph:
        """Return what the model is traced to, or was by `calibrate`."""
        known = None if self._traced is None else self._traced.graph_of(self._model, example_inputs)
        return trace(self._model, example_inputs) if known is None else known

    def prepare(
        self,
        example_inputs: ExampleInputs,
        sensitivity_path: str | Path | None = None,
        num_workers: int = 1,
        state_dict: Mapping[str, Any] | None = None,
        *,
        on_incompatible: OnIncompatible = "skip",
        backend: str | ExportBackend | None = None,
        backend_options: Mapping[str, Any] | None = None,
        dynamic_shapes: Any = None,
        parts: Mapping[str, AnyPart] | None = None,
        trust_sensitivities: bool = False,
        show_progress: bool | None = None,
        work_folder: str | Path | None = None,
    ) -> nn.Module:
        """Palettize the model in place and return it.

        Every palettized weight then decodes through a parametrization; the dense originals stay
        beside it until `finalize`. When anything fails, or the user interrupts, weights, buffers,
        flags and hooks are as before; what ``forward`` does to other objects in the one run stays.

        Args:
            example_inputs: a tuple or list of positional inputs, as in ``model(*example_inputs)``,
                a dictionary of keyword inputs, or a lone tensor, which is the only input. What is
                no tensor in them (None, flags, caches) is passed on. Run once, in evaluation mode.
            sensitivity_path: a file of sensitivities for weighted clustering, in either form that
                `save_sensitivities` writes: for each palettized weight a tensor of its shape,
                finite and not negative.
            num_workers: 1 clusters in this process, more in that many joblib workers, alike.
            state_dict: of a model that was prepared with the same config, here or by coreai-opt
                0.2 to 0.4: nothing is clustered, and its palettes, dense originals and all else
                are taken over, or nothing where it does not fit exactly.
            on_incompatible: ``"skip"`` leaves tensors whose shape does not fit their spec dense,
                with a warning each; ``"error"`` raises.
            backend: refuse, before the work, what this export backend cannot take.
            backend_options: the options it will export with.
            dynamic_shapes: those it will export with, see `export`.
            parts: likewise, in the place of these; copies of weights are counted and said.
            trust_sensitivities: take those of other weights, such as of another precision.
            show_progress: None shows a bar on a terminal.
            work_folder: keep each result in this folder, a file each, made where it is missing, so
                that after a kill the same call goes on from there. Remove it afterwards.

        Raises:
            StateError: the model is palettized already, or another run has ``work_folder``.
            TypeError: wrong kinds of arguments.
            ValueError: ``num_workers`` is less than 1.
            TracingError: the model fails on the inputs.
            PlanError: see `planning.make_plan`.
            BackendError: ``parts`` are none.
            WeightError: a weight to be palettized is NaN or infinite.
            SensitivityError: the file does not fit.
            StateDictError: ``state_dict`` does not fit; the message names all that is wrong.
            ClusteringError: an algorithm failed; the message names the tensor.
            WorkerError: a worker process was killed, or work cannot be sent to one. After any
                failure a second call of the same palettizer goes on with the weights not done.
            CalibrationError: the model failed on a calibration batch.
        """
        with torch_state_kept(), keeper_in(work_folder, self._kept, self._catalog) as kept:
            executor = Executor(num_workers, self._catalog, show_progress, kept)
            life_cycle.check(Action.PREPARE, self._model, marks=False)
            warm_up_for(self._config, self._catalog)
            with self._watch("trace and plan"):
                plan = self.make_plan(
                    example_inputs, on_incompatible=on_incompatible, backend=backend,
                    backend_options=backend_options, dynamic_shapes=dynamic_shapes, parts=parts,
                )  # fmt: skip
            warn(*plan.warnings, stacklevel=2)
            _log.info("planned: %s", plan.coverage.sentence())
            size = model_bits(self._model, plan.written)
            with self._watch("palettize"):
                if state_dict is None:
                    jobs, results = cluster_model(
                        self._model,
                        plan,
                        self._looked,
                        executor,
                        sensitivity_path=sensitivity_path,
                        trust=trust_sensitivities,
                    )
                    report = make_report(plan, results)
                    attach_palettes(self._model, jobs, results, self._config, self._catalog)
                    warn(*report.warnings, stacklevel=2)
                else:
                    report = attach_stored(
                        self._model,
                        plan,
                        state_dict,
                        self._catalog,
                        sensitivity_path=sensitivity_path,
                        trust=trust_sensitivities,
                    )
            if plan.written:
                note_written(self._model, plan.written)
            if not plan.tensors:  # else the palettes show it
                life_cycle.mark(self._model, State.PREPARED)
            run = facts_of(
                self._config, self._catalog, self._watch.seconds, size, report.saved_bytes
            )
            self.plan, self.report = plan, replace(report, run=run)
            self._looked = self._traced = None  # large, and not needed any more
            self._kept.clear()
            return self._model

    def measure(
        self, example_inputs: ExampleInputs, *, show_progress: bool | None = None
    ) -> Report:
        """Measure errors of outputs on example inputs, put them into `report`, and return it.

        The model runs in evaluation mode, dense and palettized, and up to 16 times more with one
        weight dense, to tell which weights carry most of its error. It is afterwards as before.

        Args:
            example_inputs: as those of `prepare`.
            show_progress: None shows a bar on a terminal.

        Raises:
            StateError: the model is not prepared, or in training or calibration mode.
            CalibrationError: the inputs cannot be copied, or the model fails on them.
        """
        with torch_state_kept(), self._watch("measure"):
            life_cycle.check(Action.MEASURE, self._model, self._doing)
            if self.report is None:
                raise StateError("measure() adds to the report of prepare(), and there is none")
            found = output_errors(self._model, example_inputs, show_progress=show_progress)
            self.report = with_errors(self.report, found)
        run = replace(self.report.run, seconds=dict(self._watch.seconds))
        self.report = replace(self.report, run=run)
        return self.report

    def finalize(
        self,
        model: nn.Module | None = None,
        backend: str | ExportBackend = ExportBackend.CoreAI,
        *,
        mmap_dir: str | Path | None = None,
        backend_options: Mapping[str, Any] | None = None,
    ) -> nn.Module:
        """Turn a prepared model's weights into packed indices and tables, in place.

        The dense originals are freed: ``parametrizations[...].original`` becomes a zero-size
        placeholder. Outputs equal the prepared model's. Weights that still train dense are
        clustered as they are now. ``"packed"`` is the form that torch itself runs from n bits per
        weight; ``"torch"`` makes plain dense weights instead, as `dequantize` does.

        Args:
            model: a prepared model; None is the palettizer's own.
            backend: an `ExportBackend`, or the name of a registered backend.
            mmap_dir: a folder in which to keep the packed weights, one file each, mapped into
                memory; files of the same names are replaced. They must stay as long as the model:
                using a weight without its file raises `WeightFileError`. Copies are in memory.
            backend_options: options of the backend, by name; see ``palette plugins``.

        Raises:
            StateError: the model is not prepared, or in training or calibration mode.
            MissingBackendError: the backend's plug-in is not installed.
            BackendError: the backend cannot take a tensor, or ``mmap_dir``; the model is as
                before.
            OSError: a file cannot be written in ``mmap_dir``; the model is as before.
        """
        with torch_state_kept():
            model = self._chosen(model)
            target = find_target(self._catalog, backend, backend_options)
            return finalize(
                model, target, self._catalog, mmap_dir=None if mmap_dir is None else Path(mmap_dir)
            )

    def dequantize(self, model: nn.Module | None = None) -> nn.Module:
        """Make every palettized weight a plain dense one with the palette's values, in place.

        The same as ``finalize(backend="torch")``, for finalized models too. Tied weights stay
        tied, and each takes gradients where it did; the model can be prepared again.

        Raises:
            StateError: the model is neither, or in training or calibration mode.
            WeightFileError: a file that a finalized weight is mapped from is missing or damaged.
        """
        with torch_state_kept():
            return dequantize(self._chosen(model), self._catalog)

    def export(
        self,
        path: str | Path,
        example_inputs: ExampleInputs | None = None,
        *,
        model: nn.Module | None = None,
        backend: str | ExportBackend | None = None,
        dynamic_shapes: Any = None,
        backend_options: Mapping[str, Any] | None = None,
        functions: Mapping[str, ExportFunction] | None = None,
        input_names: Names | None = None,
        output_names: Names | None = None,
        state_names: Names | None = None,
        metadata: Mapping[str, str] | None = None,
        parts: Mapping[str, AnyPart] | None = None,
    ) -> Path:
        """Finalize where that is still to be done, and write the backend's file.

        Args:
            path: what to write, and what is returned.
            example_inputs: inputs for backends that trace the model, as those of `prepare`.
            model: a prepared or finalized model; None is the palettizer's own.
            backend: as for `finalize`; None is the one that writes files named like ``path``.
            dynamic_shapes: as in ``torch.export.export``, for backends that take them.
            backend_options: see ``palette plugins``.
            functions: those of the file, by name, in the place of ``example_inputs`` and
                ``dynamic_shapes``, which describe one function, ``main``. Weights that they
                share are stored once. Like names and metadata, for backends that take them.
            input_names: names of inputs, in order, or by argument of ``forward``; also those of
                several functions, where a function has none of its own.
            output_names: names of outputs, in order, or by key of a dictionary.
            state_names: names of states, in the order of buffers, or by the buffer's name.
            metadata: of your own, kept in the file.
            parts: modules of the model that get files of their own, by name, in a folder
                ``path``: names, ranges such as ``"layers[0:6]"``, or both in order, an
                `ExportPart`, or an `ExportFunction` with its module.

        Raises:
            StateError: the model is neither prepared nor finalized.
            BackendError: the backend cannot take a tensor, ``path`` lacks its suffix, a name is
                of nothing in the model, or two are alike.
            PluginOptionsError: an option is unknown, or its value wrong.
            WeightFileError: a file that a finalized weight is mapped from is missing or damaged.
            OSError: ``path`` cannot be written. After any error the model and it are as before.
        """
        with torch_state_kept():
            model = self._chosen(model)
            place = Path(path)
            if backend is None and parts is not None:
                raise BackendError("parts go to a folder, whose name tells no backend; name it")
            name = backend_for(self._catalog, place) if backend is None else backend
            target = find_target(self._catalog, name, backend_options)
            asked = Asked(
                example_inputs, dynamic_shapes, functions, input_names, output_names, state_names,
                metadata, parts,
            )  # fmt: skip
            said = () if self.plan is None or model is not self._model else self.plan.notes
            write = export if parts is None else partial(export_parts, said=said)
            _log.info("writing %s by backend %s", place, target.name)
            with self._watch("write"):
                made = write(model, target, self._catalog, place, asked)
            if model is self._model and self.report is not None:
                run = self.report.run.with_file(
                    target.name, made, self._watch.seconds, target.entry.beside
                )
                self.report = replace(self.report, run=run)
            return made

    @contextlib.contextmanager
    def calibration_mode(
        self,
        model: nn.Module | None = None,
        *,
        loss_fn: Callable[[Any, Any], Tensor],
        sensitivity_path: str | Path | None = None,
        offload: bool = False,
        num_workers: int = 1,
        show_progress: bool | None = None,
    ) -> Iterator[Calibration]:
        """Measure by gradients of a loss how much each weight matters, and cluster again by that.

        `calibrate`, which looks at inputs before `prepare`, is another thing. Inside, the model
        computes with its dense weights, in the mode it is in. Run it on a batch and call
        ``step(output, target)`` of the object that the ``with`` statement gives; the squares of
        the gradients of ``loss_fn(output, target)`` add up to the sensitivities (SqueezeLLM,
        https://arxiv.org/abs/2306.07629, section 4.1), which take a float32 tensor per palettized
        weight. On the way out palettes are found by k-means weighted with them, and `report` tells
        the new figures. All else of the model is as before; after an exception the palettes too.

        Args:
            model: a prepared model; None is the palettizer's own.
            loss_fn: takes output and target and returns a scalar tensor.
            sensitivity_path: a file to write the sensitivities to, see `save_sensitivities`.
            offload: keep the sums of squares in the memory of the CPU.
            num_workers: as in `prepare`, and so ``show_progress``.
            show_progress: None shows a bar on a terminal.

        Raises:
            StateError: the model is not prepared, this is nested, or there was no step.
            PlanError: the algorithm of a weight does not take sensitivities.
            SensitivityError: a gradient is NaN or infinite; the message names tensor and step.
            OSError: ``sensitivity_path`` cannot be written. When that shows at the end only,
                the model is calibrated all the same, and `save_sensitivities` works.

        Warns:
            PaletteWarning: no gradient but zero reached a weight, which gets plain k-means.
        """
        model = self._chosen(model)
        life_cycle.check(Action.CALIBRATE, model, self._doing)
        executor = Executor(num_workers, self._catalog, show_progress)
        options = CalibrationOptions(loss_fn, sensitivity_path, offload, executor)
        results: Results = {}
        with (
            torch_state_kept(),
            self._occupied(model, State.CALIBRATING),
            calibration(model, options, results) as session,
        ):
            yield session
        if model is self._model and self.report is not None:
            rows = [(item.plan, result) for item, result in results.items()]
            self.report = updated_report(self.report, rows)

    def save_sensitivities(self, path: str | Path, *, model: nn.Module | None = None) -> None:
        """Write the sensitivities that the palettes were found with, for a later `prepare`.

        Args:
            path: of a safetensors file; names that end in .pt or .pth get the dictionary that
                coreai-opt writes and reads, without the fingerprints of the weights.
            model: a prepared model; None is the palettizer's own.

        Raises:
            StateError: the model is not prepared.
            SensitivityError: its palettes were found without sensitivities.
            OSError: the file cannot be written; what stood there still does.
        """
        model = self._chosen(model)
        life_cycle.check(Action.SAVE, model)
        save_sensitivities(path, sensitivities_of(model))

    @contextlib.contextmanager
    def training_mode(self, model: nn.Module | None = None) -> Iterator[Self]:
        """Train with palettized weights; call `step` after every optimizer step.

        Inside, the model is in training mode and each weight is what its training strategy makes
        of it. Weights whose module config has a `PATSchedule` train dense until its step, and
        are clustered then. On exit training flags are as before, and every palette is what
        training has come to. The model keeps count of the steps, in its state dict too.

        Raises:
            StateError: the model is not prepared, or this is nested.
            WeightError: on exit, a weight or its tables have become NaN or infinite.
            TrainingError: on exit, a strategy returned what is no assignment.
        """
        model = self._chosen(model)
        life_cycle.check(Action.TRAIN, model, self._doing)
        session = TrainingSession(model, self._catalog)
        self._session = session
        try:
            with self._occupied(model, State.TRAINING), session:
                yield self
        finally:
            self._session = None

    def step(self) -> None:
        """Count one training step, and palettize the weights whose schedule has come to it.

        Raises:
            StateError: called outside `training_mode`.
        """
        life_cycle.check(Action.STEP, self._model, self._doing)
        assert self._session is not None
        self._session.step()

    # --- inside ---------------------------------------------------------------------------------

    def _chosen(self, model: nn.Module | None) -> nn.Module:
        model = self._model if model is None else model
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        return model

    @contextlib.contextmanager
    def _occupied(self, model: nn.Module, state: State) -> Iterator[None]:
        """Do one thing at a time: this palettizer, and whoever else works on the model."""
        self._doing = state
        try:
            with life_cycle.occupied(model, state):
                yield
        finally:
            self._doing = None
