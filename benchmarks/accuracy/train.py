"""What training recovers at 2 bits: data-free k-means, then every strategy for as many steps.

    python benchmarks/accuracy/train.py digits
    PALETTE_LOADERS=folder python benchmarks/accuracy/train.py effnet-digits
    PALETTE_LOADERS=folder python benchmarks/accuracy/train.py effnet

``digits`` is a convolutional net of LeNet's size on scikit-learn's digits, trained dense first;
597 of the 1,797 images are held out. ``effnet-digits`` is EfficientNet-Lite0 with a new head, tuned
dense on the same images at 64 x 64 first. ``effnet`` is EfficientNet-Lite0 for ImageNet, tuned
towards its dense self (outputs, and what leaves each block) on crops of one half of a folder's
images, and judged by cross-entropy on the other half: ten images are too few to tune 50 layers on,
and the figures say so. Every row is a process of its own: the peak is how far resident
memory rises while it trains, recovered the part of the cross-entropy lost that comes back.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
)

ANSWER = "ANSWER "
Batches = Callable[[int], Iterator[Tensor]]
Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Task:
    """A dense model, how it is tuned, and how judged.

    Attributes:
        model: trained, dense.
        inputs: for ``prepare``.
        batches: yields a number of batches.
        loss: of a model on a batch.
        judge: cross-entropy and top-1 on held-out data.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    batches: Callable[[int], Iterator[Any]]
    loss: Loss
    judge: Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class Contender:
    """A strategy with its options and learning rates (Adam, falling to zero as a cosine)."""

    strategy: str
    options: dict[str, Any]
    rate: float
    lut_rate: float = 0.0


def contenders(task: str, steps: int) -> dict[str, Contender]:
    # All but hard at the end: in a deep net the step from soft to hard assignments adds up.
    soft = {"temperature": 2.0, "final_temperature": 0.02, "anneal_steps": steps * 4 // 5}
    # The deep net's weights have far to go in few steps.
    rate = {"digits": 1e-3, "effnet-digits": 1e-3, "effnet": 3e-3}[task]
    return {
        "frozen": Contender("frozen", {}, rate),
        "ste": Contender("ste", {}, rate, 1e-3),
        "dkm": Contender("dkm", soft, rate),
    }


# --- digits -------------------------------------------------------------------------------------


def digits(dense: Path) -> Task:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )
    return tuned(digits_task(model, 64, lambda x: x), dense, rate=2e-3, steps=1500)


def digits_task(model: nn.Module, size: int, view: Callable[[Tensor], Tensor]) -> Task:
    """Digits in batches of a size, ``[size, 1, 8, 8]`` in -1 to 1, as a model's view of them."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    y = torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    mine, held = order[:1200], order[1200:]

    def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1)
        for _ in range(count):
            at = mine[torch.randint(len(mine), (size,), generator=generator)]
            yield view(x[at]), y[at]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    shown = view(x[held])
    return Task(model, (shown[:1],), batches, loss, lambda m: judged(m, shown, y[held]))


def tuned(task: Task, dense: Path, *, rate: float, steps: int) -> Task:
    """Train the dense model, or load what was trained before."""
    if dense.exists():
        task.model.load_state_dict(torch.load(dense, weights_only=True))
    else:
        optimize(task.model, task, [{"params": list(task.model.parameters()), "lr": rate}], steps)
        torch.save(task.model.state_dict(), dense)
    return task


# --- EfficientNet -------------------------------------------------------------------------------


def effnet_digits(dense: Path) -> Task:
    from models import _loader

    model = for_few_steps(_loader("effnet").load())
    torch.manual_seed(0)
    model._fc = nn.Linear(model._fc.in_features, 10)

    def view(x: Tensor) -> Tensor:
        return F.interpolate(x.expand(-1, 3, -1, -1), size=64, mode="bilinear")

    return tuned(digits_task(model, 32, view), dense, rate=1e-3, steps=300)


def for_few_steps(model: Any) -> Any:
    """Let statistics follow quickly, and drop nothing."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model._global_params = model._global_params._replace(drop_connect_rate=0.0)
    return model


def effnet(dense: Path) -> Task:
    del dense  # it comes trained
    from models import _loader

    loader = _loader("effnet")
    model, (x, y) = for_few_steps(loader.load()), loader.data(10)
    per_image = 10
    half = len(x) // per_image // 2 * per_image
    teacher = loader.load().requires_grad_(False)

    def batches(count: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(1)
        for _ in range(count):
            at = torch.randint(half, (8,), generator=generator)
            i, j = (int(n) for n in torch.randint(224 - SIDE + 1, (2,), generator=generator))
            yield x[at, :, i : i + SIDE, j : j + SIDE]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        with torch.no_grad():
            wanted, wanted_out = outputs(teacher, batch)
        got, out = outputs(model, batch)
        total = F.kl_div(
            F.log_softmax(out, 1),
            F.log_softmax(wanted_out, 1),
            log_target=True,
            reduction="batchmean",
        )
        for a, b in zip(got, wanted, strict=True):
            total = total + (a - b).square().mean() / b.square().mean()
        return total

    held = x[half :: per_image // 5], y[half :: per_image // 5]
    return Task(model, (x[:1],), batches, loss, lambda m: judged(m, *held))


SIDE = 128  # of the crops of crops that EfficientNet is tuned on


def outputs(model: nn.Module, batch: Tensor) -> tuple[list[Tensor], Tensor]:
    """What leaves every block, and the model."""
    seen: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda _module, _args, out: seen.append(out))
        for block in model._blocks
    ]
    try:
        return seen, model(batch)
    finally:
        for handle in handles:
            handle.remove()


# --- one row ------------------------------------------------------------------------------------


@torch.no_grad()
def judged(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    model.eval()
    out = torch.cat([model(part) for part in x.split(25)])
    return {
        "ce": F.cross_entropy(out, y).item(),
        "top1": (out.argmax(1) == y).float().mean().item(),
    }


def optimize(
    model: nn.Module,
    task: Task,
    groups: list[dict[str, Any]],
    steps: int,
    step: Callable[[], None] | None = None,
) -> None:
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for batch in task.batches(steps):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
        schedule.step()
        if step is not None:
            step()


def row(task: Task, contender: Contender, steps: int) -> dict[str, Any]:
    spec = PalettizationSpec(
        n_bits=2,
        training_strategy=contender.strategy,
        training_strategy_options=contender.options,
    )
    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec})
    )
    dense = task.judge(task.model)
    palettizer = KMeansPalettizer(task.model, config)
    model = palettizer.prepare(task.inputs, show_progress=False)
    before = task.judge(model)
    tables = [p for name, p in model.named_parameters() if name.endswith(".lut")]
    ids = {id(p) for p in tables}
    rest = [p for p in model.parameters() if id(p) not in ids]
    groups = [{"params": rest, "lr": contender.rate}]
    if tables:
        groups.append({"params": tables, "lr": contender.lut_rate})
    start, base = time.perf_counter(), resident(reset=True)
    with palettizer.training_mode():
        optimize(model, task, groups, steps, palettizer.step)
    seconds, peak = time.perf_counter() - start, resident() - base
    after = task.judge(model)
    final = palettizer.finalize(backend="packed")
    assert task.judge(final) == after, "finalized differs from evaluated"
    return {"dense": dense, "before": before, "after": after, "seconds": seconds, "peak": peak}


def resident(*, reset: bool = False) -> int:
    """Peak of resident bytes since the last reset; 0 where the system does not say."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    field = "VmRSS" if reset else "VmHWM"
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=tuple(TASKS))
    parser.add_argument("--steps", type=int, help="300 for both digits, 150 for effnet")
    parser.add_argument("--only", nargs="*", help="some of frozen, ste, dkm")
    parser.add_argument("--rate", type=float, help="learning rate of weights and the rest")
    parser.add_argument("--lut-rate", type=float, help="learning rate of tables")
    parser.add_argument("--options", type=json.loads, help="of the strategy, as JSON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--dense", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    steps = given.steps or (150 if given.task == "effnet" else 300)
    if given.row:
        chosen = contenders(given.task, steps)[given.row]
        chosen = Contender(
            chosen.strategy,
            chosen.options if given.options is None else given.options,
            given.rate or chosen.rate,
            given.lut_rate or chosen.lut_rate,
        )
        print(ANSWER + json.dumps(row(TASKS[given.task](given.dense), chosen, steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder) / "dense.pt"
        TASKS[given.task](dense)  # trained once, for all
        shown = False
        for name in given.only or contenders(given.task, steps):
            command = [
                sys.executable,
                __file__,
                *sys.argv[1:],
                "--row",
                name,
                "--dense",
                str(dense),
            ]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            answer = next(line for line in done.stdout.splitlines() if line.startswith(ANSWER))
            show(name, steps, json.loads(answer.removeprefix(ANSWER)), heading=not shown)
            shown = True


TASKS: dict[str, Callable[[Path], Task]] = {
    "digits": digits,
    "effnet-digits": effnet_digits,
    "effnet": effnet,
}


def show(name: str, steps: int, found: dict[str, Any], *, heading: bool) -> None:
    dense, before, after = found["dense"], found["before"], found["after"]
    if heading:
        print(f"{'':14}  cross-entropy  top-1  recovered  steps  seconds  peak MiB")
        print(f"{'dense':14}  {dense['ce']:13.3f}  {dense['top1']:5.1%}")
        print(f"{'k-means':14}  {before['ce']:13.3f}  {before['top1']:5.1%}")
    recovered = (before["ce"] - after["ce"]) / (before["ce"] - dense["ce"])
    print(
        f"{name:14}  {after['ce']:13.3f}  {after['top1']:5.1%}  {recovered:9.0%}  {steps:5}  "
        f"{found['seconds']:7.1f}  {found['peak'] / 2**20:8.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
