"""One model through one library: seconds, squared error and peak memory, in a process of its own.

``python contenders.py '{"library": "ours", "case": {…}, …}'`` prints one line of JSON. `measured`
starts that process. Every library goes through its public door, ``prepare``; each first works
on small models, so that compiling and loading stay out of the figures.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import logging
import os
import resource
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LIBRARIES = ("ours", "coreai_opt", "sklearn")
_ANSWER = "ANSWER "
_SIDE_BY_SIDE = 1 << 21  # weights larger than this are worked on by all threads
_SMALL = ((64, 64), (320, 320))  # the second has more points than seeding looks at


@dataclass(frozen=True)
class Case:
    """A weight, or a model, and what to do with it.

    Attributes:
        name: as shown.
        shape: of a normal float32 weight with deviation 0.02; empty where ``model`` says it.
        model: a factory in ``models.py``.
        bits: of the palette.
        group: rows that share a palette; 0 is per tensor.
        dim: values in one entry.
        exact: no rounding in the search.
        target: coreai-opt's seconds are to be this many of ours; None where none is set.
    """

    name: str
    target: float | None
    shape: tuple[int, ...] = ()
    model: str = ""
    bits: int = 4
    group: int = 0
    dim: int = 1
    exact: bool = False


def measured(
    library: str,
    case: Case,
    *,
    budget: float,
    limit: float,
    python: str = sys.executable,
    script: str = __file__,
) -> dict[str, Any]:
    """Run a case in a process of its own.

    Args:
        library: one of `LIBRARIES`.
        case: what to do.
        budget: repeat while the runs took less than this many seconds in all, at most 5 times.
        limit: stop after this many seconds.
        python: the interpreter, which says which build of a library is measured.
        script: this file, or the same of another checkout.

    Returns:
        seconds (of the fastest run), alone_seconds (of our algorithm without ``prepare``),
        forward_seconds (of one run of a model, as tracing needs it; None for others), runs,
        error, peak_bytes (above the model, in the first run), largest_bytes (of a weight); or
        failed, the reason.
    """
    task = json.dumps({"library": library, "case": asdict(case), "budget": budget})
    command = [python, "-W", "ignore", script, task]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not over after {limit:.0f} s"}
    for line in done.stdout.splitlines():
        if line.startswith(_ANSWER):
            answer: dict[str, Any] = json.loads(line.removeprefix(_ANSWER))
            return answer
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return {"failed": lines[-1][:300]}


def api(library: str) -> SimpleNamespace:
    """Return the names that both libraries have."""
    if library == "ours":
        import palette_core as module
        import palette_core.config.granularity as granularity
    else:
        import coreai_opt.palettization as module
        import coreai_opt.palettization.spec as granularity

        logging.getLogger("coreai_opt").setLevel(logging.ERROR)
    return SimpleNamespace(
        Palettizer=module.KMeansPalettizer,
        Config=module.KMeansPalettizerConfig,
        ModuleConfig=module.ModuleKMeansPalettizerConfig,
        Spec=module.PalettizationSpec,
        Grouped=granularity.PerGroupedChannelGranularity,
        PerTensor=granularity.PerTensorGranularity,
    )


def config(library: str, case: Case) -> Any:
    names = api(library)
    grain = names.Grouped(axis=0, group_size=case.group) if case.group else names.PerTensor()
    spec = names.Spec(n_bits=case.bits, granularity=grain, cluster_dim=case.dim)
    fast = not case.exact and case.dim == 1
    return names.Config(
        global_config=names.ModuleConfig(
            op_state_spec={"weight": spec, "in_proj_weight": spec}, enable_fast_kmeans_mode=fast
        )
    )


def prepared(library: str, case: Case, model: nn.Module, inputs: tuple[Any, ...]) -> float:
    """Palettize the model in place; return the seconds."""
    chosen = config(library, case)
    torch.manual_seed(0)
    np.random.seed(0)
    start = time.perf_counter()
    api(library).Palettizer(model, chosen).prepare(inputs)
    return time.perf_counter() - start


def normal_model(shape: tuple[int, ...]) -> tuple[nn.Module, tuple[Tensor]]:
    """Return one linear layer with weights of deviation 0.02, and an input."""
    rows, columns = shape
    layer = nn.Linear(columns, rows, bias=False)
    generator = torch.Generator().manual_seed(0)
    layer.weight.data.normal_(0, 0.02, generator=generator)
    return nn.Sequential(layer).eval(), (torch.zeros(1, columns),)


def build(case: Case) -> tuple[nn.Module, tuple[Any, ...]]:
    if not case.model:
        return normal_model(case.shape)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import models

    return getattr(models, case.model)()


def squared_error(model: nn.Module) -> tuple[float, int]:
    """Return the squared error of all palettized weights, and how many there are.

    A weight that two modules share counts once.
    """
    total, seen = 0.0, set()
    for module in model.modules():
        for name, chain in getattr(module, "parametrizations", {}).items():
            if chain.original.data_ptr() not in seen:
                seen.add(chain.original.data_ptr())
                gap = getattr(module, name).detach().double() - chain.original.detach().double()
                total += float(gap.square().sum())
    return total, len(seen)


def run_prepare(library: str, case: Case, budget: float) -> dict[str, Any]:
    for shape in _SMALL:
        prepared(library, case, *normal_model(shape))
    source, inputs = build(case)
    largest = max(p.numel() * p.element_size() for p in source.parameters())
    times: list[float] = []
    peak = error = count = None
    while len(times) < 5 and (not times or sum(times) < budget):
        model = copy.deepcopy(source)
        memory = PeakMemory()
        times.append(prepared(library, case, model, inputs))
        if peak is None:
            peak = memory.growth()
            with torch.no_grad():
                error, count = squared_error(model)
        del model
    alone = forward = None
    if library == "ours":
        alone = algorithm_alone(case, source) if case.shape else all_alone(case, source, inputs)
        forward = None if case.shape else forward_alone(source, inputs)
    return {
        "seconds": min(times),
        "alone_seconds": alone,
        "forward_seconds": forward,
        "runs": len(times),
        "error": error,
        "weights": count,
        "peak_bytes": peak,
        "largest_bytes": largest,
    }


def algorithm_alone(case: Case, model: nn.Module) -> float:
    """Return seconds of the algorithm without all that ``prepare`` does around it."""
    from palette_core.builtins.clusterers.kmeans1d.clusterer import KMeans1d
    from palette_core.builtins.clusterers.kmeans_vector.clusterer import KMeansVector
    from palette_core.plugins import ClusterProblem
    from palette_core.tensors.layout import BlockLayout

    rows, columns = case.shape
    layout = BlockLayout(case.shape, (case.group or rows, columns), case.dim, 0)
    points = layout.split(model[0].weight.detach())
    problem = ClusterProblem(points, 2**case.bits, resolution=None if case.exact else 4)
    algorithm = KMeans1d() if case.dim == 1 else KMeansVector()
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        algorithm.fit(problem)
        best = min(best, time.perf_counter() - start)
    return best


def all_alone(case: Case, model: nn.Module, inputs: tuple[Any, ...]) -> float:
    """Return seconds of the algorithm for all weights of a model, on all threads."""
    from palette_core._common.threads import side_by_side
    from palette_core.builtins.clusterers.kmeans1d.clusterer import KMeans1d
    from palette_core.plugins import ClusterProblem

    plan = api("ours").Palettizer(model, config("ours", case)).make_plan(inputs)
    problems = []
    for tensor in plan:
        owner = tensor.owners[0]
        weight = getattr(model.get_submodule(owner.module), owner.state).detach()
        points = tensor.layout.split(weight)
        problems.append(ClusterProblem(points, 2**case.bits, resolution=tensor.resolution))
    problems.sort(key=lambda problem: -problem.points.numel())
    small = [problem for problem in problems if problem.points.numel() <= _SIDE_BY_SIDE]
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for problem in problems[: len(problems) - len(small)]:
            KMeans1d().fit(problem)
        for _ in side_by_side(KMeans1d().fit, small):
            pass
        best = min(best, time.perf_counter() - start)
    return best


def forward_alone(model: nn.Module, inputs: tuple[Any, ...]) -> float:
    """Return seconds of one run of a model."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        with torch.no_grad():
            model(*inputs)
        best = min(best, time.perf_counter() - start)
    return best


def run_sklearn(case: Case) -> dict[str, Any]:
    """Cluster one weight by scikit-learn, once per tensor, one start as the others."""
    from sklearn.cluster import KMeans

    model, _ = normal_model(case.shape)
    weight = model[0].weight.detach()
    points = weight.T.reshape(-1, case.dim).contiguous().numpy()
    KMeans(2, n_init=1).fit(points[:64])
    memory = PeakMemory()
    start = time.perf_counter()
    found = KMeans(2**case.bits, n_init=1, random_state=0).fit(points)
    seconds = time.perf_counter() - start
    gap = points.astype(np.float64) - found.cluster_centers_[found.labels_]
    return {
        "seconds": seconds,
        "runs": 1,
        "error": float((gap**2).sum()),
        "peak_bytes": memory.growth(),
        "largest_bytes": points.nbytes,
    }


class PeakMemory:
    """How far the resident memory of this process rises above what it is now.

    On Linux what was freed is given back first, lest it is used again unseen, and the kernel's
    high-water mark is set back; elsewhere it is the mark of the whole
    life of the process, and a rise below an earlier peak goes unseen.
    """

    def __init__(self) -> None:
        gc.collect()
        if sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:  # the C library is glibc
                trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self.start = self._mark()
        else:
            self.start = self._status("VmRSS")

    def growth(self) -> int:
        """Return bytes."""
        return max(0, self._mark() - self.start)

    def _mark(self) -> int:
        if sys.platform == "linux":
            return self._status("VmHWM")
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    @staticmethod
    def _status(field: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"/proc/self/status has no {field}")


def main() -> None:
    task = json.loads(sys.argv[1])
    case = Case(**task["case"])
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ.get("PALETTE_BENCH_THREADS", "2")))
    if task["library"] == "sklearn":
        answer = run_sklearn(case)
    else:
        answer = run_prepare(task["library"], case, task["budget"])
    print(_ANSWER + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
