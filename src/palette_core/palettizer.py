"""The palettizer: prepare a model, train it, finalize and export it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Self, final

from torch import nn

from palette_core import parametrization
from palette_core.calibration import look, not_calibrated, run_calibrated
from palette_core.calibration import warn_about as warn_missing
from palette_core.cluster_tensor import Clustered, check_finite
from palette_core.config import KMeansPalettizerConfig
from palette_core.errors import BackendError, StateError
from palette_core.execution import Job, check_num_workers, run_jobs
from palette_core.finalizing import pack_model
from palette_core.interfaces import Backend
from palette_core.moments import Calibration, Findings, Loss, batches_of
from palette_core.packed_weight import palette_modules
from palette_core.palette_modules import PalettizedWeight
from palette_core.planning import OnIncompatible, Plan, make_plan, refusals, warn_about
from palette_core.plugins import Catalog, get_catalog, validate_options
from palette_core.progress import progress_bar
from palette_core.report import Report, make_report
from palette_core.rng import untouched_global_rng
from palette_core.sensitivities import load_sensitivities, normalized
from palette_core.tracing import ExampleInputs, trace
from palette_core.training_session import TrainingSession, palettize_current


class ExportBackend(Enum):
    """The documented export targets; any registered backend's name works in their place."""

    CoreAI = "coreai"
    CoreML = "coreml"
    Torch = "torch"


@final
class KMeansPalettizer:
    """Palettizes a model's weights as a config says.

    Args:
        model: the model; `prepare` changes it in place.
        config: the rules; None is the documented default, 4 bits per tensor.

    Attributes:
        plan: after `prepare`: what was decided about every tensor.
        report: after `prepare`: sizes, signal-to-noise and seconds by tensor.

    Raises:
        TypeError: ``model`` is not a module, or ``config`` not a `KMeansPalettizerConfig`.
    """

    def __init__(self, model: nn.Module, config: KMeansPalettizerConfig | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"Model must be a torch.nn.Module, got {type(model).__name__}")
        if config is not None and not isinstance(config, KMeansPalettizerConfig):
            raise TypeError(
                f"config must be a KMeansPalettizerConfig, got {type(config).__name__}; "
                "KMeansPalettizerConfig.from_yaml and from_dict make one"
            )
        self._model = model
        self._config = KMeansPalettizerConfig() if config is None else config
        self._catalog: Catalog = get_catalog()
        self._session: TrainingSession | None = None
        self._steps = 0
        self._calibration: tuple[Calibration, Findings] | None = None
        self.plan: Plan | None = None
        self.report: Report | None = None

    @staticmethod
    def supported_modules() -> tuple[type[nn.Module], ...]:
        """Return the module types whose weights are palettized by default.

        Others are reached by asking: by operation type, by module type, or by
        ``module_state_spec``.
        """
        return _SUPPORTED_MODULES

    def make_plan(
        self,
        example_inputs: ExampleInputs,
        *,
        on_incompatible: OnIncompatible = "skip",
        backend: str | ExportBackend | None = None,
    ) -> Plan:
        """Trace the model and decide about every tensor, changing nothing.

        Args:
            example_inputs: a tuple of positional or a dictionary of keyword inputs.
            on_incompatible: see `prepare`.
            backend: refuse what this export backend cannot take.

        Raises:
            TracingError: the model fails on the inputs.
            PlanError: see `planning.make_plan`.
        """
        target = None if backend is None else self._backend(backend)
        graph = trace(self._model, example_inputs)
        return make_plan(
            graph,
            self._config,
            self._catalog,
            on_incompatible=on_incompatible,
            backend=target,
        )

    def calibrate(
        self,
        batches: Iterable[Any],
        *,
        sequential: bool = False,
        compensate: bool = True,
        blocks: Sequence[str] | None = None,
        held_out: Iterable[Any] = (),
        loss: Loss | None = None,
        output_groups: int = 4,
        folder: str | Path | None = None,
    ) -> None:
        """Give `prepare` inputs to look at, for algorithms that need second moments.

        Runs the model forward on every batch, in evaluation mode, and sums x xᵀ of what each
        planned weight is multiplied with. Call it before `prepare`; calling it again replaces
        what it found. See the page on data-aware palettes for what each option costs.

        Args:
            batches: model inputs: each a tuple of positional or a dictionary of keyword inputs,
                or a lone tensor. No labels.
            sequential: take the moments block by block in `prepare`, from a model whose earlier
                blocks are palettized already. The batches are kept until then.
            compensate: in sequential mode, let every weight aim at the outputs of the unchanged
                model, so that it makes good for errors of its inputs too.
            blocks: names of the modules that are palettized one after the other; None takes the
                elements of the model's outermost module lists, and layers outside of them.
            held_out: batches by which each block is judged: where plain k-means gives the block
                outputs nearer to the unchanged model's, it replaces the data-aware result.
            loss: ``loss(output, batch)``, a scalar; its squared gradient with respect to a
                layer's outputs then weighs the moments (GuidedQuant). Needs a backward pass.
            output_groups: groups of output channels with moments of their own, with ``loss``.
            folder: an existing folder in which matrices are kept instead of in memory.

        Raises:
            StateError: the model is palettized already.
            TypeError: a batch is neither a tensor, a tuple nor a mapping.
            CalibrationError: there are no batches, the model or the loss failed on one, or
                ``blocks`` names no module.
            TracingError, PlanError: see `make_plan`; the first batch is the example.
        """
        if next(palette_modules(self._model), None) is not None:
            raise StateError("Model has already been prepared. Calibrate before prepare()")
        calibration = Calibration(
            batches_of(batches),
            sequential=sequential,
            compensate=compensate,
            blocks=None if blocks is None else tuple(blocks),
            held_out=batches_of(held_out),
            loss=loss,
            output_groups=output_groups,
            folder=None if folder is None else Path(folder),
        )
        plan = self.make_plan(calibration.batches[0])
        needy = [t for t in plan if self._catalog.clusterers.get(t.algorithm).needs_moments]
        self._calibration = calibration, look(self._model, needy, calibration)

    def prepare(
        self,
        example_inputs: ExampleInputs,
        sensitivity_path: str | Path | None = None,
        num_workers: int = 1,
        *,
        on_incompatible: OnIncompatible = "skip",
        show_progress: bool | None = None,
    ) -> nn.Module:
        """Palettize the model in place and return it.

        Every palettized weight then decodes through a parametrization; the dense originals stay
        beside it until `finalize`. When anything fails, or the user interrupts, the model is as
        it was before: its weights, buffers, flags and hooks. What ``forward`` itself does to
        plain Python attributes in the one traced run stays.

        Args:
            example_inputs: a tuple of positional inputs, as in ``model(*example_inputs)``, or a
                dictionary of keyword inputs. Run once, in evaluation mode.
            sensitivity_path: a file of sensitivities for weighted clustering: safetensors, or a
                ``torch.save`` dictionary, with a tensor under the name of each palettized weight,
                of its shape, finite and not negative.
            num_workers: 1 clusters in this process, more in that many joblib workers. The
                result is the same.
            on_incompatible: ``"skip"`` leaves tensors whose shape does not fit their spec dense,
                with a warning each; ``"error"`` raises.
            show_progress: None shows a bar on a terminal.

        Raises:
            StateError: the model is palettized already.
            TypeError: wrong kinds of arguments.
            ValueError: ``num_workers`` is less than 1.
            TracingError: the model fails on the inputs.
            PlanError: see `planning.make_plan`.
            WeightError: a weight to be palettized is NaN or infinite.
            SensitivityError: the file does not fit.
            ClusteringError: an algorithm failed; the message names the tensor.
            CalibrationError: the model failed on a calibration batch.
        """
        num_workers = check_num_workers(num_workers)
        if next(palette_modules(self._model), None) is not None:
            raise StateError("Model has already been prepared. Cannot re-prepare")
        plan = self.make_plan(example_inputs, on_incompatible=on_incompatible)
        warn_about(plan)
        with untouched_global_rng():
            jobs = self._jobs(plan, sensitivity_path)
            results = self._run(jobs, num_workers, show_progress)
        report = make_report(plan, results)
        self._attach(plan, results)
        self.plan, self.report = plan, report
        return self._model

    def finalize(
        self,
        model: nn.Module | None = None,
        backend: str | ExportBackend = ExportBackend.CoreAI,
        *,
        mmap_dir: str | Path | None = None,
    ) -> nn.Module:
        """Turn a prepared model's weights into packed indices and tables, in place.

        The dense originals are freed: ``parametrizations[...].original`` becomes a zero-size
        placeholder. Outputs equal the prepared model's. Weights that still train dense, their
        `PATSchedule` not having come, are clustered as they are now.

        Args:
            model: a prepared model; None is the palettizer's own.
            backend: an `ExportBackend`, or the name of a registered backend.
            mmap_dir: where backends that support it keep the weights on disk.

        Raises:
            StateError: the model is not prepared.
            MissingBackendError: the backend's plug-in is not installed.
            BackendError: the backend cannot take a tensor, or ``mmap_dir``.
        """
        model = self._chosen(model)
        name = _backend_name(backend)
        target = self._backend(backend)
        if mmap_dir is not None and not self._catalog.backend(name).supports_mmap:
            raise BackendError(f"mmap_dir is not supported by backend {name!r}; leave it out")
        items = list(palette_modules(model))
        prepared = [(m, s, item) for _, m, s, item in items if isinstance(item, PalettizedWeight)]
        if not prepared and not (model is self._model and self.plan is not None and not items):
            raise StateError("Model must be prepared before finalization")
        sentences = refusals(list({i.plan.name: i.plan for _, _, i in prepared}.values()), target)
        if sentences:
            raise BackendError(f"backend {name!r} cannot take: " + "; ".join(sentences))
        palettize_current(prepared, self._catalog)
        palettized = pack_model(model)
        directory = None if mmap_dir is None else Path(mmap_dir)
        return target.finalize(model, palettized, directory)

    def export(
        self,
        path: str | Path,
        example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        model: nn.Module | None = None,
        backend: str | ExportBackend = ExportBackend.CoreAI,
        dynamic_shapes: Any = None,
    ) -> Path:
        """Finalize where that is still to be done, and write the backend's file.

        Args:
            path: what to write.
            example_inputs: inputs for backends that trace the model.
            model: a prepared or finalized model; None is the palettizer's own.
            backend: an `ExportBackend`, or the name of a registered backend.
            dynamic_shapes: as in ``torch.export.export``, for backends that take them.

        Returns:
            The path written.

        Raises:
            BackendError: the backend cannot take a tensor, or ``path`` lacks its suffix.
            OSError: the folder of ``path`` cannot be made; the model is as before.
        """
        model = self._chosen(model)
        suffix = self._catalog.backend(_backend_name(backend)).suffix
        if Path(path).suffix != suffix:
            raise BackendError(f"backend {_backend_name(backend)!r} writes {suffix}, got {path}")
        # Before the dense weights are freed.
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if any(isinstance(item, PalettizedWeight) for _, _, _, item in palette_modules(model)):
            model = self.finalize(model, backend)
        return self._backend(backend).export(model, example_inputs, Path(path), dynamic_shapes)

    @contextlib.contextmanager
    def training_mode(self, model: nn.Module | None = None) -> Iterator[Self]:
        """Train with palettized weights; call `step` after every optimizer step.

        Inside, the model is in training mode and each weight is what its training strategy makes
        of it. Weights whose module config has a `PATSchedule` train dense until its step, and
        are clustered then. On exit training flags are as before.

        Raises:
            StateError: the model is not prepared, or this is nested.
        """
        model = self._chosen(model)
        if self._session is not None:
            raise StateError("Cannot enter training_mode() while palettizer is training")
        session = TrainingSession(model, self._catalog, self._steps)
        self._session = session
        try:
            with session:
                yield self
        finally:
            self._session, self._steps = None, session.steps

    def step(self) -> None:
        """Count one training step, and palettize the weights whose schedule has come to it.

        Raises:
            StateError: called outside `training_mode`.
        """
        if self._session is None:
            raise StateError("step() must be called inside a training_mode()")
        self._session.step()

    # --- inside ---------------------------------------------------------------------------------

    def _chosen(self, model: nn.Module | None) -> nn.Module:
        model = self._model if model is None else model
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        return model

    def _backend(self, backend: str | ExportBackend) -> Backend:
        entry = self._catalog.backend(_backend_name(backend))
        return entry.factory(validate_options(entry, "export backend", {}))

    def _jobs(self, plan: Plan, sensitivity_path: str | Path | None) -> list[Job]:
        sensitivities = (
            {} if sensitivity_path is None else load_sensitivities(sensitivity_path, plan)
        )
        jobs = []
        for tensor in plan:
            owner = tensor.owners[0]
            weight = getattr(self._model.get_submodule(owner.module), owner.state).detach()
            check_finite(tensor.name, weight)
            importance = sensitivities.get(tensor.name)
            jobs.append(Job(tensor, weight, None if importance is None else normalized(importance)))
        return jobs

    def _run(self, jobs: list[Job], num_workers: int, show: bool | None) -> list[Clustered]:
        total = len(jobs)
        with progress_bar("Palettizing", total, show=show) as advance:

            def on_done(job: Job, _: Clustered) -> None:
                advance(job.plan.name, 1)

            if self._calibration is None:
                missing = not_calibrated(jobs, self._catalog)
                results = run_jobs(
                    jobs, num_workers=num_workers, catalog=self._catalog, on_done=on_done
                )
            else:
                results, missing = run_calibrated(
                    self._model,
                    jobs,
                    *self._calibration,
                    num_workers=num_workers,
                    catalog=self._catalog,
                    on_done=on_done,
                )
        warn_missing(missing)
        return results

    def _attach(self, plan: Plan, results: Sequence[Clustered]) -> None:
        """Install every palette, or none."""
        places = [list(parametrization.places(self._model, tensor.owners)) for tensor in plan]
        kept = parametrization.Kept(module for each in places for module, _ in each)
        try:
            for tensor, result, where in zip(plan, results, places, strict=True):
                entry = self._catalog.training_strategies.get(tensor.spec.training_strategy)
                options = validate_options(
                    entry, "training strategy", tensor.spec.training_strategy_options
                )
                item = PalettizedWeight(tensor, result.palettized, entry.factory(options))
                for module, state in where:
                    item.train(module.training)
                    parametrization.attach(module, state, item)
        except BaseException:
            kept.restore()
            raise


_SUPPORTED_MODULES: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.MultiheadAttention,
)


def _backend_name(backend: str | ExportBackend) -> str:
    if isinstance(backend, ExportBackend):
        return backend.value
    if isinstance(backend, str):
        return backend
    raise BackendError(
        f"backend must be an ExportBackend or the name of a registered one, got {backend!r}"
    )
