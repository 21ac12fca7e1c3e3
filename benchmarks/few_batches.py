"""Sensitivities of few batches: accuracy by the number of batches, as they are and damped.

Small networks learn digits (scikit-learn's ``load_digits``) and are palettized with sensitivities
of 1 to 11 batches of 128, used in four ways: not at all; element by element as measured, which is
what palette_core did before; the sum over each vector, which is what the reference does; and as
palette_core does, with the mean of a weight counting as so many batches more.

How many, was chosen by ``--tune``, on synthetic pictures; digits are for judging alone::

    python benchmarks/few_batches.py --seeds 5
    python benchmarks/few_batches.py --tune --seeds 3

"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
)
from palette_core.storage.sensitivity_files import save_sensitivities
from palette_core.tensors.sensitivities import Sensitivity, fingerprint, from_squares

Data = tuple[Tensor, Tensor, Tensor, Tensor]  # inputs and labels to train with, and to judge by
Way = Callable[[Tensor, int, int], tuple[Tensor, int | None]]
TRAINED = 1400
BATCH = 128
COUNTS = (1, 2, 4, 11)


def digits(seed: int) -> Data:
    """Return handwritten digits, 8 by 8 pixels each."""
    inputs, labels = load_digits(return_X_y=True)
    return _split(inputs / 16, labels, seed)


def pictures(seed: int) -> Data:
    """Return noisy pictures of ten classes, two smooth templates each, moved by a pixel or two."""
    rng = np.random.default_rng(100 + seed)
    smooth = np.stack([gaussian_filter(rng.normal(size=(10, 10)), 1.2) for _ in range(20)])
    smooth /= smooth.std((1, 2), keepdims=True)
    labels, kind = rng.integers(0, 10, 2000), rng.integers(0, 2, 2000)
    down, right = rng.integers(0, 3, (2, 2000))
    moved = zip(labels, kind, down, right, strict=True)
    made = np.stack([smooth[2 * c + k, i : i + 8, j : j + 8] for c, k, i, j in moved])
    made = made * rng.uniform(0.5, 1.5, (2000, 1, 1)) + 0.75 * rng.normal(size=made.shape)
    return _split(made.reshape(2000, 64) / 2, labels, seed)


def _split(inputs: np.ndarray, labels: np.ndarray, seed: int) -> Data:
    order = np.random.default_rng(seed).permutation(len(inputs))
    x, y = torch.tensor(inputs[order], dtype=torch.float32), torch.tensor(labels[order])
    return x[:TRAINED], y[:TRAINED], x[TRAINED:], y[TRAINED:]


def dense() -> nn.Module:
    """Return three linear layers."""
    layers = (nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    return nn.Sequential(*layers)


def convolutional() -> nn.Module:
    """Return two convolutions and two linear layers."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def trained(make: Callable[[], nn.Module], data: Data, seed: int) -> nn.Module:
    """Return a network that has learned."""
    torch.manual_seed(seed)
    model, generator = make(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(30):
        for rows in torch.randperm(TRAINED, generator=generator).split(64):
            optimizer.zero_grad()
            cross_entropy(model(data[0][rows]), data[1][rows]).backward()
            optimizer.step()
    return model.eval()


def squares(model: nn.Module, data: Data, count: int) -> dict[str, Tensor]:
    """Return squared gradients of so many batches, added up, as `calibration_mode` does."""
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    for at in range(count):
        rows = slice(at * BATCH, (at + 1) * BATCH)
        found = torch.autograd.grad(
            cross_entropy(model(data[0][rows]), data[1][rows]), list(weights.values())
        )
        for part, gradient in zip(total.values(), found, strict=True):
            part.add_(gradient.square())
    return total


def as_measured(total: Tensor, dim: int, count: int) -> tuple[Tensor, int | None]:
    """Return sensitivities that count as they are, as those of files without numbers of batches."""
    del dim, count
    return total, None


def by_vector(total: Tensor, dim: int, count: int) -> tuple[Tensor, int | None]:
    """Return the sum over each vector, for all of its elements."""
    del count
    sums = total.unflatten(0, (-1, dim)).sum(1, keepdim=True)
    return sums.expand(-1, dim, *total.shape[1:]).flatten(0, 1), None


def damped(total: Tensor, dim: int, count: int) -> tuple[Tensor, int | None]:
    """Return sensitivities that palette_core damps by the number of their batches."""
    del dim
    return total, count


def with_mean(batches: float) -> Way:
    """Return the way in which the mean counts as another number of batches."""

    def way(total: Tensor, dim: int, count: int) -> tuple[Tensor, int | None]:
        del dim
        return total + batches / count * total.mean(), None

    return way


def judged(
    model: nn.Module,
    make: Callable[[], nn.Module],
    data: Data,
    spec: PalettizationSpec,
    measured: dict[str, tuple[Tensor, int | None]],
) -> tuple[float, float]:
    """Return accuracy in percent and cross-entropy of the palettized network."""
    copy = make()
    copy.load_state_dict(model.state_dict())
    module = ModuleKMeansPalettizerConfig(
        op_state_spec={"weight": spec}, enable_fast_kmeans_mode=False
    )
    palettizer = KMeansPalettizer(copy.eval(), KMeansPalettizerConfig(global_config=module))
    with tempfile.TemporaryDirectory() as folder:
        path = None
        if measured:
            path = Path(folder) / "sensitivities.safetensors"
            weights = dict(model.named_parameters())
            made = {
                name: Sensitivity(
                    from_squares(total.clone()), fingerprint(weights[name]), None, batches
                )
                for name, (total, batches) in measured.items()
            }
            save_sensitivities(path, made)
        palettizer.prepare((data[2][:1],), path)
    with torch.no_grad():
        out = copy(data[2])
    right = (out.argmax(1) == data[3]).float().mean()
    return 100 * float(right), float(cross_entropy(out, data[3]))


def rows(load: Callable[[int], Data], ways: dict[str, Way], seeds: int) -> Iterator[str]:
    """Yield a line for each network, spec and way: accuracy and cross-entropy by batches."""
    for make in (convolutional, dense):
        sets = [load(seed) for seed in range(seeds)]
        models = [trained(make, data, seed) for seed, data in enumerate(sets)]
        both = list(zip(models, sets, strict=True))
        for bits, dim in ((4, 2), (2, 1)):
            spec = PalettizationSpec(n_bits=bits, cluster_dim=dim)
            plain = [judged(model, make, data, spec, {}) for model, data in both]
            yield f"{make.__name__}, {bits} bits, cluster_dim {dim}: without {_mean(plain)}"
            for name, way in ways.items():
                found = []
                for count in COUNTS:
                    made = []
                    for model, data in both:
                        totals = squares(model, data, count)
                        measured = {n: way(t, dim, count) for n, t in totals.items()}
                        made.append(judged(model, make, data, spec, measured))
                    found.append(_mean(made))
                yield f"    {name:16} {'   '.join(found)}"


def _mean(values: list[tuple[float, float]]) -> str:
    accuracy, loss = np.mean(values, axis=0)
    return f"{accuracy:5.2f} / {loss:.3f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tune", action="store_true", help="other data, and several strengths")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ways: dict[str, Way] = {"as measured": as_measured, "sum of vectors": by_vector}
    if options.tune:
        ways |= {f"mean as {n}": with_mean(n) for n in (1, 2, 4, 8, 16, 32)}
    else:
        ways["ours"] = damped
    print(f"accuracy in percent / cross-entropy, {COUNTS} batches of {BATCH}")
    for line in rows(pictures if options.tune else digits, ways, options.seeds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
