"""Plug-ins that do what no plug-in should: runs without them are as ever, and so is the process.

Each case is a distribution on disk, discovered in a forked child. There, somebody else's run has
to give the same palettes as without it; a run that selects it gives a right result or an error of
ours that names it; models of failed runs are as before; and nothing of the process has changed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import pickle
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hostile_plugins as sources
import numpy as np
import torch
from forks import fork
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    allocate,
    load_checkpoint,
    save_checkpoint,
)
from palette_core.cli import main
from palette_core.errors import PaletteError
from palette_core.plugins.catalog import get_catalog

INPUTS = (torch.ones(2, 8),)
_DISTRIBUTION = "hostile-plugin"


@dataclass
class Outcome:
    """What became of the cases, by kind, and the cases that broke the promise."""

    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


def attack(count: int, seed: int = 0) -> Outcome:
    """Install ``count`` hostile plug-ins, one after the other."""
    made, outcome = random.Random(seed), Outcome()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected_by_default()
    for kind in sources.WORK:
        right_results(kind)
    for number in range(count):
        case = made.choice(CASES)(made)
        what, broken = _in_child(lambda case=case: _contained(case))
        outcome.counts[what] += 1
        if broken:
            outcome.broken.append(f"seed {seed}, case {number}, {case.title}: {broken}")
    return outcome


@dataclass(frozen=True)
class Case:
    """A hostile plug-in.

    Attributes:
        title: what it does.
        kind: of what it registers.
        source: its module.
        name: by which it is selected.
        is_right: its results are those of the right plug-in, if there are any.
        spec: more of the spec that selects it.
        metadata: of its distribution.
        points: its entry points.
        rival: the name of a second distribution with the same hooks, where there is one.
        allowed: errors of anybody's that may come out, as documented.
        may_change: of the process, by a run that selects it: strategies of training may draw
            random numbers, so that states that one reseeds stay as it leaves them.
    """

    title: str
    kind: str
    source: str
    name: str = "hostile-name"
    is_right: bool = False
    spec: tuple[tuple[str, Any], ...] = ()
    metadata: str = f"Metadata-Version: 2.1\nName: {_DISTRIBUTION}\nVersion: 6.6\n"
    points: str = "[palette_core]\nmain = hostile_plugin.hooks\n"
    rival: str = ""
    allowed: tuple[type[BaseException], ...] = ()
    may_change: frozenset[str] = frozenset()


# --- cases --------------------------------------------------------------------------------------


def source_of(
    kind: str,
    body: str = "    return right()",
    where: str = "nowhere",
    name: str = "'hostile-name'",
    options: str = "NoOptions",
    fields: str = "",
) -> str:
    text = sources.HEAD + sources.WORK[kind][1]
    for mark, value in (
        *(("@NAME@", name), ("@WHERE@", repr(where)), ("@BODY@", body)),
        *(("OPTIONS", options), ("FIELDS", fields)),
    ):
        text = text.replace(mark, value)
    return text


_SPECS: dict[str, tuple[tuple[tuple[str, Any], ...], ...]] = {
    "clusterer": (
        *((), (), (("cluster_dim", 2),), (("preserve_zero", True),)),
        *((("lut_qspec", {"dtype": "int8"}),), (("enable_per_channel_scale", True),)),
    ),
}


def misbehaves(made: random.Random) -> Case:
    kind = made.choice(sorted(sources.WORK))
    where = made.choice(sources.WORK[kind][0])
    title = made.choice(sorted(sources.BEHAVIOURS))
    behaviour = sources.BEHAVIOURS[title]
    spec = made.choice(_SPECS.get(kind, ((),)))
    allowed: tuple[type[BaseException], ...] = ()
    if kind == "command":
        allowed = (SystemExit, OSError)
    elif where in ("export", "check_place"):
        allowed = (OSError,)
    draws = kind == "training" and where != "factory" and behaviour.draws
    return Case(
        f"{kind} whose {where} {title}",
        kind,
        source_of(kind, behaviour.code, where),
        is_right=behaviour.is_harmless and not spec,
        spec=spec,
        allowed=allowed,
        may_change=frozenset({"python", "numpy", "torch"} if draws else ()),
    )


def goes_wrong_early(made: random.Random) -> Case:
    kind, title = made.choice(sorted(sources.WORK)), made.choice(sorted(sources.HOOKS))
    return Case(f"{kind} that {title}", kind, source_of(kind) + "\n" + sources.HOOKS[title])


def lies(made: random.Random) -> Case:
    kind = made.choice(sorted(sources.WORK))
    fields = made.choice((*sources.LIES[""], *sources.LIES[kind] * 3))
    spec = made.choice(_SPECS.get(kind, ((),)))
    return Case(f"{kind} with {fields}", kind, source_of(kind, fields=fields), spec=spec)


def names_itself(made: random.Random) -> Case:
    kind, name = made.choice(sorted(sources.WORK)), made.choice(sources.NAMES)
    return Case(f"{kind} named {name}", kind, source_of(kind, name=name))


def has_odd_options(made: random.Random) -> Case:
    kind, options = made.choice(sorted(sources.WORK)), made.choice(sources.OPTIONS)
    return Case(f"{kind} with options {options}", kind, source_of(kind, options=options))


def registers_oddly(made: random.Random) -> Case:
    kind, value = made.choice(sorted(sources.WORK)), made.choice(sources.LISTS)
    relisted = sources.RELISTED.replace("@VALUE@", value)
    return Case(f"{kind} in a list {value}", kind, source_of(kind) + relisted)


def is_installed_oddly(made: random.Random) -> Case:
    kind = made.choice(sorted(sources.WORK))
    if made.random() < 0.4:
        metadata = made.choice(sources.METADATA)
        return Case(f"{kind} of {metadata[:60]!r}", kind, source_of(kind), metadata=metadata)
    points = made.choice(sources.POINTS)
    return Case(f"{kind} at {points[:60]!r}", kind, source_of(kind), points=points)


def has_a_rival(made: random.Random) -> Case:
    kind = made.choice(sorted(sources.WORK))
    shared = {
        "backend": "suffix='.hostile'",
        "operation": "aliases=('hostile_alias',), module_types=('hostile_attack.Rivalled',)",
        "lut-quantizer": "dtypes=('int64',), is_default=True",
        "clusterer": "supports_vector=True",
    }
    fields = shared.get(kind, "")
    return Case(f"{kind} with a rival", kind, source_of(kind, fields=fields), rival="hostile-rival")


CASES: tuple[Callable[[random.Random], Case], ...] = (
    *(misbehaves, misbehaves, misbehaves, misbehaves, lies, lies, goes_wrong_early),
    *(names_itself, has_odd_options, registers_oddly, is_installed_oddly, has_a_rival),
)


# --- one case -----------------------------------------------------------------------------------


def _in_child(work: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """Return what work returns in a forked child, or how the child ended."""
    reading, writing = os.pipe()
    child = fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            try:
                answer = work()
            except BaseException:
                answer = "broken", "".join(traceback.format_exc()[-1500:])
            pickle.dump(answer, pipe)
            pipe.flush()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if not data:
        return "broken", f"the process ended with status {status}"
    answer: tuple[str, str] = pickle.loads(data)
    return answer


def _contained(case: Case) -> tuple[str, str]:
    with _installed(case), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = _process()
        if _default() != expected_by_default():
            return "broken", "somebody else's run has other palettes"
        changed = _differences(state, _process())
        if changed:
            return "broken", f"somebody else's run leaves {changed} changed"
        problem = _listing()
        if problem:
            return "broken", problem
        what, problem = _selected(case)
        left = {key: value for key, value in state.items() if key not in case.may_change}
        changed = _differences(left, _process())
        if problem or changed:
            return "broken", problem or f"its run leaves {changed} changed"
        if _default() != expected_by_default():
            return "broken", "somebody else's run has other palettes after it has run"
    return what, ""


def _selected(case: Case) -> tuple[str, str]:
    run = RUNS[case.kind](case)
    before = _of_model(run.model)
    try:
        found = run.result()
    except PaletteError as error:
        text = str(error)
        after = _of_model(run.model)
        if "hostile" not in text and "attack.project" not in text:
            return "", f"an error that does not name it: {text[:300]}"
        if case.rival and not all(n in text for n in (_DISTRIBUTION, case.rival)):
            return "", f"an error that does not name both: {text[:300]}"
        if len(text) > 3000:
            return "", f"an error of {len(text)} characters: {text[:100]}"
        wanted = [before, *run.reached][-1]
        changed = "" if wanted is None else _differences(wanted, after)
        return "an error of ours", f"a failed run changed the model: {changed}" if changed else ""
    except case.allowed as error:
        return f"{type(error).__name__}, as documented", ""
    except MemoryError:
        return "MemoryError, as documented", ""
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "", f"{type(error).__module__}.{type(error).__name__} at {place}"
    if case.rival:
        return "", "two claim it, and one was taken"
    if case.is_right and found != right_results(case.kind):
        return "", "a result that is not right"
    return "a result", ""


@contextlib.contextmanager
def _installed(case: Case) -> Any:
    root = Path(tempfile.mkdtemp(prefix="attack-"))
    sys.path.insert(0, str(root))
    for name in filter(None, (_DISTRIBUTION, case.rival)):
        package = name.replace("-", "_")
        _write(root / package / "__init__.py", "")
        _write(root / package / "hooks.py", case.source)
        info = root / f"{package}-6.6.dist-info"
        _write(info / "METADATA", case.metadata.replace(_DISTRIBUTION, name))
        _write(info / "entry_points.txt", case.points.replace("hostile_plugin", package))
    importlib.invalidate_caches()
    get_catalog.cache_clear()
    try:
        yield
    finally:
        shutil.rmtree(root)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8", "surrogateescape")


# --- somebody else's run ------------------------------------------------------------------------


@torch.library.custom_op("attack::project", mutates_args=())
def project(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply, as an operation of a library that nobody knows."""
    return x @ weight


@project.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


project.register_autograd(
    lambda ctx, grad: (grad @ ctx.saved_tensors[1].T, ctx.saved_tensors[0].T @ grad),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


class Project(nn.Module):
    """A layer of that library."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.attack.project(x, self.weight)  # type: ignore[no-any-return]


class Net(nn.Module):
    """Tied weights, a norm with buffers, something that stays dense, a layer of somebody's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.b = nn.Linear(8, 8, bias=False)
        self.b.weight = self.a.weight
        self.c = nn.Linear(8, 8)
        self.p = Project()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.p(self.c(self.b(self.norm(self.a(x)))))  # type: ignore[no-any-return]


def _config(op_type: str = "", **spec: Any) -> KMeansPalettizerConfig:
    settings: dict[str, Any] = {"op_state_spec": {"weight": {"n_bits": 2, **spec}}}
    settings["enable_fast_kmeans_mode"] = spec.get("cluster_dim", 1) == 1
    if op_type:
        settings["op_type_config"] = {op_type: {"op_state_spec": {"weight": {"n_bits": 2}}}}
    return KMeansPalettizerConfig.from_dict(
        {"kmeans_palettization_config": {"global_config": settings}}
    )


def _default() -> list[bytes]:
    model = Net()
    palettizer = KMeansPalettizer(model, _config(lut_qspec={"dtype": "int8"}))
    palettizer.prepare(INPUTS, show_progress=False)
    found = _palettes(model)
    palettizer.finalize(backend="packed")
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        path = palettizer.export(Path(folder, "m.safetensors"), backend="packed")
        return [*found, *_palettes(load_checkpoint(path, Net()))]


def _palettes(model: nn.Module) -> list[bytes]:
    with torch.no_grad():
        weights = [model.a.weight, model.b.weight, model.c.weight, model.p.weight]  # type: ignore[union-attr]
        return [_bytes(t) for t in (*weights, model(*INPUTS))]  # type: ignore[arg-type]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()


@functools.cache
def expected_by_default() -> list[bytes]:
    return _default()


def _listing() -> str:
    """Run ``palette plugins``; return what is wrong with what it prints."""
    code, text = _main(["plugins"])
    lines = text.split("\n")
    if code:
        return f"palette plugins ends with {code}: {text[-300:]}"
    longest = max(map(len, lines))
    if not all(line.isprintable() for line in lines) or longest > 2000 or len(lines) > 2000:
        return f"palette plugins prints {len(lines)} lines of up to {longest} characters: " + next(
            (repr(line[:300]) for line in lines if not line.isprintable()), ""
        )
    return ""


def _main(arguments: list[str]) -> tuple[Any, str]:
    out = io.StringIO()
    before, sys.argv = sys.argv, ["palette", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main()
    except SystemExit as stopped:
        code = stopped.code
    finally:
        sys.argv = before
    return code or 0, out.getvalue()


# --- runs that select it ------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A model, and what is to be done with it.

    Attributes:
        model: the model.
        result: does it.
        reached: what the model has come to be rightly, last; None where it trains.
    """

    model: nn.Module
    result: Callable[[], Any]
    reached: list[dict[str, Any] | None] = field(default_factory=list)


def _by_spec(case: Case, **spec: Any) -> Run:
    model = Net()
    reached: list[dict[str, Any] | None] = []

    def result() -> Any:
        palettizer = KMeansPalettizer(model, _config(**spec, **dict(case.spec)))
        palettizer.prepare(INPUTS, show_progress=False)
        reached.append(_of_model(model))
        found = _palettes(model)
        palettizer.finalize(backend="packed")
        reached.append(_of_model(model))
        _demand_finite(model)
        return [*found, *_palettes(model)]

    return Run(model, result, reached)


def _clusterer(case: Case) -> Run:
    return _by_spec(case, algorithm=case.name)


def _granularity(case: Case) -> Run:
    return _by_spec(case, granularity={"type": case.name})


def _lut_quantizer(case: Case) -> Run:
    spec = {"dtype": "int64"} if case.rival else {"dtype": "int8", "quantizer": case.name}
    return _by_spec(case, lut_qspec=spec)


def _stored_form(case: Case) -> Run:
    run = _by_spec(case, stored_form=case.name)

    def result() -> Any:
        found = run.result()
        with tempfile.TemporaryDirectory(prefix="attack-") as folder:
            path = save_checkpoint(run.model, Path(folder) / "m.safetensors")
            return [*found, *_palettes(load_checkpoint(path, Net()))]

    return Run(run.model, result, run.reached)


def _training(case: Case) -> Run:
    model = Net()
    reached: list[dict[str, Any] | None] = []

    def result() -> Any:
        palettizer = KMeansPalettizer(model, _config(training_strategy=case.name))
        palettizer.prepare(INPUTS, show_progress=False)
        reached.append(None)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with palettizer.training_mode():
            for _ in range(3):
                optimizer.zero_grad()
                model(*INPUTS).square().sum().backward()
                optimizer.step()
                palettizer.step()
        _demand_finite(model)
        return _palettes(model)

    return Run(model, result, reached)


def _backend(case: Case) -> Run:
    model = Net()
    palettizer = KMeansPalettizer(model, _config())
    palettizer.prepare(INPUTS, show_progress=False)

    def result() -> Any:
        KMeansPalettizer(Net()).make_plan(INPUTS, backend=case.name)
        with tempfile.TemporaryDirectory(prefix="attack-") as folder:
            path = Path(folder, "m.hostile")
            if case.rival:
                arguments = ["export", "none.py:model", "-o", str(path)]
                code, text = _main(arguments)
                if code != 2 or case.rival not in text:
                    raise AssertionError(f"palette export ends with {code}: {text[-300:]}")
            palettizer.export(path, INPUTS, backend=case.name)
            if len(list(Path(folder).iterdir())) != 1:
                raise AssertionError("something is left beside the file")
            return [path.read_bytes(), *_palettes(model)]

    return Run(model, result)


def _metric(case: Case) -> Run:
    model = Net()

    def result() -> Any:
        found = allocate(
            model,
            None,
            INPUTS,
            target_bpw=3,
            candidates=(1, 2, 3),
            metric=case.name,
            batches=[torch.eye(8)[:4], torch.ones(3, 8)],
            show_progress=False,
        )
        return found.to_dict()

    return Run(model, result)


def _operation(case: Case) -> Run:
    model = Net()

    def result() -> Any:
        config = _config("hostile_alias" if case.rival else "attack.project", algorithm="gptq")
        palettizer = KMeansPalettizer(model, config)
        palettizer.calibrate([torch.eye(8)[:4], torch.ones(3, 8)])
        palettizer.prepare(INPUTS, show_progress=False)
        _demand_finite(model)
        return _palettes(model)

    return Run(model, result)


def _command(case: Case) -> Run:
    def result() -> Any:
        code, text = _main([case.name])
        if "Traceback" in text:
            raise AssertionError(text[-500:])
        if code == 2 and text.count("\n") <= 25:
            raise PaletteError(text)
        return code, text

    return Run(nn.Module(), result)


def _demand_finite(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (model.a.weight, model.c.weight, model.p.weight, model(*INPUTS)):  # type: ignore[union-attr]
            if not bool(tensor.isfinite().all()):
                raise AssertionError("weights of the result are NaN or infinite")


RUNS: dict[str, Callable[[Case], Run]] = {
    "clusterer": _clusterer,
    "lut-quantizer": _lut_quantizer,
    "granularity": _granularity,
    "training": _training,
    "backend": _backend,
    "metric": _metric,
    "operation": _operation,
    "stored-form": _stored_form,
    "command": _command,
}


@functools.cache
def right_results(kind: str) -> Any:
    """Return what the right plug-in of a kind gives."""
    case = Case("right", kind, source_of(kind))

    def work() -> tuple[Any, str]:
        with _installed(case), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return RUNS[kind](case).result(), ""

    found, problem = _in_child(work)
    if problem:
        raise AssertionError(f"the right {kind} fails: {problem}")
    return found


# --- states -------------------------------------------------------------------------------------


def _process() -> dict[str, Any]:
    return {
        "folder": os.getcwd(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "device": str(torch.get_default_device()),
        "determinism": torch.get_deterministic_debug_mode(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "gradients": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "precision": torch.get_float32_matmul_precision(),
        "modes": len(_get_current_dispatch_mode_stack()),
        "python": random.getstate(),
        "numpy": pickle.dumps(np.random.get_state()),
        "torch": _bytes(torch.get_rng_state()),
        "errors": np.geterr(),
    }


def _of_model(model: nn.Module) -> dict[str, Any]:
    return {
        "names": list(model.state_dict()),
        "tensors": [_bytes(t) for t in model.state_dict().values()],
        "same": [(id(t), t.requires_grad, t.dtype, t.grad is None) for t in model.parameters()],
        "buffers": [(id(t), t.dtype) for t in model.buffers()],
        "modules": [(id(m), type(m).__name__, m.training) for m in model.modules()],
        "hooks": [
            [len(v) for n, v in sorted(vars(m).items()) if n.endswith("hooks") and v is not None]
            for m in model.modules()
        ],
        "attributes": [sorted(vars(m)) for m in model.modules()],
    }


def _differences(before: dict[str, Any], after: dict[str, Any]) -> str:
    return ", ".join(key for key, value in before.items() if after[key] != value)
