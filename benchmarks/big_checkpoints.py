"""Checkpoints palettized without a model: throughput beside engine and copy, and memory.

    python benchmarks/big_checkpoints.py [--tensors 16] [--size 4096] [--shards 4] [--rounds 3]
    python benchmarks/big_checkpoints.py --cases stream-1 copy --tensors 128 --rounds 1   # 8.6 GB

The checkpoint is made up: square float32 weights of normal numbers, at 4 bits in groups of 16 rows.
Every case is a process of its own, and cases take turns. Printed are, of the round with the least
processor time: tensors and millions of weights per second, by the clock and by processor time of
all processes, and MiB of resident memory above what the process had before it began, pages of
mapped files included. Clocks mean something only on a machine that does nothing else.

Cases: `copy` reads and writes all tensors by the same reader and writer; `engine-N` clusters the
mapped weights with N workers and writes nothing; `stream-N` is `palettize_checkpoint`; `dask-N` is
the same on a cluster of N local nodes of dask.distributed, one thread each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import joblib
import torch
from joblib.externals.loky import get_reusable_executor
from safetensors.torch import save_file

from palette_core import KMeansPalettizerConfig, palettize_checkpoint, plan_checkpoint
from palette_core.engine.executor import Executor
from palette_core.engine.jobs import Job
from palette_core.storage.span_writing import Streamed, write_spans
from palette_core.streaming.source import open_source

CASES = ("copy", "engine-1", "stream-1", "engine-2", "stream-2", "dask-2")
GRANULARITY = {"type": "per_grouped_channel", "axis": 0, "group_size": 16}
CONFIG = KMeansPalettizerConfig.model_validate(
    {"global_config": {"op_state_spec": {"weight": {"n_bits": 4, "granularity": GRANULARITY}}}}
)


def make(folder: Path, tensors: int, size: int, shards: int) -> None:
    """Write a checkpoint as Hugging Face's libraries do, one shard at a time."""
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{number}.mlp.up_proj.weight" for number in range(tensors)]
    files = {}
    for shard in range(shards):
        own, file = names[shard::shards], f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file(
            {name: torch.randn(size, size, generator=generator) for name in own}, folder / file
        )
        files |= dict.fromkeys(own, file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def copy(folder: Path, out: Path) -> None:
    source = open_source(folder)
    out.mkdir()
    for shard in source.shards:
        spans = [Streamed(name, span) for name, span in shard.spans.items()]
        write_spans(out / shard.path.name, spans, json.dumps, "copied")


def engine(folder: Path, workers: int) -> None:
    planned = plan_checkpoint(folder, CONFIG)
    spans = {span.name: span for span in open_source(folder).spans()}
    jobs = [Job(plan, spans[name].mapped()) for name, plan in planned.by_stored_name().items()]
    Executor(workers, progress=False).run(jobs)


@contextlib.contextmanager
def dask(nodes: int) -> Iterator[None]:
    import distributed

    with (
        distributed.LocalCluster(
            n_workers=nodes, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        yield


class Peak:
    """Highest resident memory of this process above that at the start, in MiB."""

    def __enter__(self) -> Peak:
        self.start = self.peak = _resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, _resident())

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def above(self) -> float:
        return self.peak - self.start


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _processor_time() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run(case: str, folder: Path, out: Path) -> dict[str, float]:
    """Run one case in this process, its kernels compiled before."""
    warm = folder.parent / "warm"
    palettize_checkpoint(warm, CONFIG, out.with_name("warm out"), progress=False)
    shutil.rmtree(out.with_name("warm out"))
    kind, _, count = case.partition("-")
    before = _processor_time()
    with Peak() as peak, dask(int(count)) if kind == "dask" else contextlib.nullcontext():
        clock = -time.perf_counter()  # a cluster is there already when work comes
        if kind == "copy":
            copy(folder, out)
        elif kind == "engine":
            engine(folder, int(count))
        else:
            palettize_checkpoint(folder, CONFIG, out, num_workers=int(count), progress=False)
        clock += time.perf_counter()
    if count == "2" and kind != "dask":
        get_reusable_executor().shutdown()  # the time of workers counts once they end
    return {"clock": clock, "processor": _processor_time() - before, "above": peak.above}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tensors", type=int, default=16)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        case, folder, out = arguments.one
        print(json.dumps(run(case, Path(folder), Path(out))))
        return
    rows: dict[str, list[dict[str, float]]] = {case: [] for case in arguments.cases}
    with tempfile.TemporaryDirectory() as place:
        folder, warm, out = (Path(place) / name for name in ("dense", "warm", "out"))
        for path, tensors, size, shards in (
            (folder, arguments.tensors, arguments.size, arguments.shards),
            (warm, 1, 64, 1),
        ):
            path.mkdir()
            make(path, tensors, size, shards)
        for _ in range(arguments.rounds):
            for case in arguments.cases:
                command = [sys.executable, __file__, "--one", case, str(folder), str(out)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                rows[case].append(json.loads(done.stdout.splitlines()[-1]))
                shutil.rmtree(out, ignore_errors=True)
    show(rows, arguments.tensors, arguments.size)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def show(rows: dict[str, list[dict[str, float]]], tensors: int, size: int) -> None:
    weights = tensors * size * size / 1e6
    print(f"{tensors} tensors of {size} x {size}, {weights * 4 / 1e3:.1f} GB, 4 bits, groups of 16")
    print("          by the clock            by processor time       MiB above the start")
    for case, found in rows.items():
        best = min(found, key=lambda row: row["processor"])
        by = (
            f"{tensors / best[key]:6.2f}/s {weights / best[key]:7.1f} M/s   "
            for key in ("clock", "processor")
        )
        print(f"{case:9} {''.join(by)}  {best['above']:8.0f}")


if __name__ == "__main__":
    main()
