"""Files that were damaged or edited: each is refused by an error of ours, or says what it said.

Four kinds of files: packed checkpoints that are loaded into a model, the same read by commands,
files of sensitivities, and caches of allocations. Who makes checksums anew, or leaves them out as
older files do, may say something else; then only the errors count, and that no weight is NaN.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    allocate,
    load_checkpoint,
    save_checkpoint,
)
from palette_core.cli import main
from palette_core.errors import PaletteError
from palette_core.storage.checksums import sealed
from palette_core.storage.sensitivity_files import (
    WantedTensor,
    load_sensitivities,
    save_sensitivities,
)
from palette_core.tensors.sensitivities import Sensitivity, fingerprint, normalized


@dataclass
class Outcome:
    """What became of the files, by kind, and the files that broke the promise."""

    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


def attack(count: int, seed: int = 0) -> Outcome:
    """Read ``count`` mutants, a quarter of each kind."""
    made, outcome = random.Random(seed), Outcome()
    with tempfile.TemporaryDirectory(prefix="attack-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = [kind(Path(folder)) for kind in (Load, Commands, Sensitivities, Cache)]
        for number in range(count):
            kind = kinds[number % len(kinds)]
            what, broken = _try(kind, made)
            outcome.counts[f"{type(kind).__name__} {what}"] += 1
            if broken:
                who = f"seed {seed}, case {number}, {type(kind).__name__}"
                outcome.broken.append(f"{who}: {broken}")
    return outcome


def _try(kind: Kind, made: random.Random) -> tuple[str, str]:
    data, how, is_honest = kind.mutant(made)
    kind.path.write_bytes(data)
    try:
        same = kind.says_the_same()
    except (PaletteError, OSError) as error:
        text = str(error)
        return "refused", "" if text else f"{how}: an error without words"
    except BaseException as error:
        return "foreign", f"{how}: {type(error).__name__}: {str(error)[:200]}"
    if same or not is_honest:
        nan = "" if same or kind.is_finite() else f"{how}: a weight is NaN or infinite"
        return "the same" if same else "another, sealed anew", nan
    return "silent", f"{how}: it says something else"


Mutant = tuple[bytes, str, bool]  # what is in the file, what was done, and whether it shows


class Kind:
    """One kind of file."""

    path: Path
    whole: list[bytes]

    def mutant(self, made: random.Random) -> Mutant:
        """Return a mutant of one of the whole files."""
        return _of_bytes(made, made.choice(self.whole))

    def says_the_same(self) -> bool:
        """Return whether what stands at the path says what was written."""
        raise NotImplementedError

    def is_finite(self) -> bool:
        """Return whether no weight of what `says_the_same` has read is NaN or infinite."""
        return True


# --- packed checkpoints -------------------------------------------------------------------------


class Net(nn.Module):
    """Tied weights, a norm with buffers, several shapes, and something that is no tensor."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.b = nn.Linear(8, 8, bias=False)
        self.c = nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.words = ["of", {"seed": seed}]

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.norm(self.a(x))))

    def get_extra_state(self) -> object:
        return self.words

    def set_extra_state(self, state: Any) -> None:
        self.words = state


SPECS: tuple[dict[str, Any], ...] = (
    {"n_bits": 2},
    {"n_bits": 3, "lut_qspec": {"dtype": "uint8"}, "enable_per_channel_scale": True},
    {"n_bits": 2, "lut_qspec": {"dtype": "float8_e4m3fn"}, "cluster_dim": 2},
    {"n_bits": 2, "cluster_dim": 4, "enable_per_channel_scale": True},
    {"n_bits": 3, "scale_block_size": 4},
    {"n_bits": 2, "sparsity_detection_threshold": 0.3, "stored_form": "sparse"},
    {
        **{"n_bits": 2, "sparsity_detection_threshold": 0.3, "stored_form": "sparse"},
        **{"lut_qspec": {"dtype": "int8"}, "scale_block_size": 2},
    },
    {
        **{"n_bits": 2, "sparsity_detection_threshold": 0.3, "stored_form": "sparse"},
        **{"cluster_dim": 2},
    },
)
INPUTS = (torch.ones(2, 8),)


def _config(spec: dict[str, Any]) -> KMeansPalettizerConfig:
    settings = {"op_state_spec": {"weight": spec}, "enable_fast_kmeans_mode": len(spec) == 1}
    return KMeansPalettizerConfig.from_dict(
        {"kmeans_palettization_config": {"global_config": settings}}
    )


class Load(Kind):
    """Loading into a model."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.safetensors"
        self.whole, self._right = [], []
        for spec in SPECS:
            net = Net().eval()
            if "stored_form" in spec:
                _prune(net)
            KMeansPalettizer(net, _config(spec)).prepare(INPUTS, show_progress=False)
            self.whole.append(save_checkpoint(net, self.path).read_bytes())
            self._right.append(self._loaded())

    def _loaded(self) -> list[Any]:
        net = load_checkpoint(self.path, Net(seed=1)).eval()
        weights = [net.a.weight, net.b.weight, net.c.weight]
        return [net.words, *weights, *net.norm.buffers(), *_dense(net)]

    def mutant(self, made: random.Random) -> Mutant:
        self._which = made.randrange(len(self.whole))
        return _of_safetensors(made, self.whole[self._which], "palette_core")

    def says_the_same(self) -> bool:
        (words, *found), (right_words, *right) = self._loaded(), self._right[self._which]
        self._weights = found[:3]
        return words == right_words and all(map(torch.equal, found, right))

    def is_finite(self) -> bool:
        return all(bool(weight.isfinite().all()) for weight in self._weights)


def _prune(net: Net) -> None:
    with torch.no_grad():
        for weight in (net.a.weight, net.c.weight):
            weight[torch.arange(weight.numel()).reshape(weight.shape) % 5 < 3] = 0


def _dense(net: nn.Module) -> list[Tensor]:
    return [tensor for _, tensor in sorted(net.named_parameters()) if tensor.numel()]


class Commands(Load):
    """``palette inspect`` and ``palette verify``."""

    def mutant(self, made: random.Random) -> Mutant:
        self._command = made.choice(("inspect", "verify"))
        self._json = made.random() < 0.5
        return super().mutant(made)

    def says_the_same(self) -> bool:
        out, err = io.StringIO(), io.StringIO()
        arguments = ["palette", self._command, str(self.path), *(["--json"] * self._json)]
        before, sys.argv = sys.argv, arguments
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
        except SystemExit as stopped:
            code = stopped.code or 0
        finally:
            sys.argv = before
        if code not in (0, 1, 2) or "Traceback" in err.getvalue():
            raise AssertionError(f"{self._command} ended with {code}: {err.getvalue()[-300:]}")
        if code == 2 and err.getvalue().count("\n") != 1:
            raise AssertionError(f"{self._command} says on more than a line: {err.getvalue()}")
        if self._json and code < 2:
            json.loads(out.getvalue())
        if code:
            raise PaletteError(err.getvalue() or out.getvalue())
        return super().says_the_same()


# --- sensitivities ------------------------------------------------------------------------------


class Sensitivities(Kind):
    """Files of sensitivities, of both formats."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        weights = {name: torch.randn(6, 5) for name in ("a.weight", "b.weight")}
        self._marks = {name: fingerprint(weight) for name, weight in weights.items()}
        self._right = {name: normalized(torch.rand(6, 5)) for name in weights}
        self.whole, self._paths = [], [folder / "s.safetensors", folder / "s.pt"]
        for path in self._paths:
            found = {
                name: Sensitivity(values, self._marks[name], 0.5)
                for name, values in self._right.items()
            }
            save_sensitivities(path, found)
            self.whole.append(path.read_bytes())

    def mutant(self, made: random.Random) -> Mutant:
        which = made.randrange(2)
        self.path = self._paths[which]
        if which == 0:
            return _of_safetensors(made, self.whole[0], "palette_core_sensitivities")
        if made.random() < 0.3:
            return _odd_tensors(made, self._right)
        return _of_bytes(made, self.whole[1])

    def says_the_same(self) -> bool:
        wanted = [WantedTensor((name,), (6, 5), mark) for name, mark in self._marks.items()]
        found = load_sensitivities(self.path, wanted)
        # Without our metadata it is a file of another program, whose scale nobody knows.
        scale = 0.5 if b'"palette_core_sensitivities":' in self.path.read_bytes() else None
        return all(
            torch.equal(found[name].values, values) and found[name].scale == scale
            for name, values in self._right.items()
        )


_ODD: tuple[Callable[[Tensor], Any], ...] = (
    lambda t: t.to_sparse(),
    lambda t: t.to_sparse_csr(),
    lambda t: t.to("meta"),
    lambda t: t.to(torch.uint16),
    lambda t: t.to(torch.uint32),
    lambda t: t.to(torch.uint64),
    lambda t: t.to(torch.int64),
    lambda t: t.to(torch.complex64),
    lambda t: t > 0,
    lambda t: t.to(torch.float8_e4m3fn),
    lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.quint8),
    lambda t: torch.nested.nested_tensor([t, t]),
    lambda t: t * math.nan,
    lambda t: -t,
    lambda t: t.T,
    lambda t: t[:0],
    lambda t: t.expand(2, 6, 5),
    lambda t: t.numpy().tolist(),
    nn.Parameter,
    lambda t: {"a": t},
    lambda t: None,
)


def _odd_tensors(made: random.Random, right: dict[str, Tensor]) -> Mutant:
    values: dict[Any, Any] = dict(right)
    number = made.randrange(len(_ODD))
    values[made.choice((*right, 3, "a.parametrizations.weight.original"))] = _ODD[number](
        right["a.weight"].clone()
    )
    stream = io.BytesIO()
    torch.save(values if made.random() < 0.95 else list(values), stream)
    return stream.getvalue(), f"odd tensor {number}", False


# --- caches of allocations ----------------------------------------------------------------------


class Cache(Kind):
    """Caches of allocations."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cache.json"
        torch.manual_seed(0)
        self._net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
        self._right = self._allocated()
        self.whole = [self.path.read_bytes()]

    def _allocated(self) -> dict[str, Any]:
        return allocate(
            self._net,
            None,
            INPUTS,
            target_bpw=5,
            candidates=(1, 2, 3),
            cache=self.path,
            show_progress=False,
        ).to_dict()

    def mutant(self, made: random.Random) -> Mutant:
        if made.random() < 0.5:
            return super().mutant(made)
        lines = self.whole[0].splitlines()
        at = made.randrange(len(lines))
        how = made.randrange(3)
        if how == 0:
            del lines[at]
        elif how == 1:
            lines[at] = lines[made.randrange(len(lines))]
        else:
            lines[at] = _edited_json(made, lines[at].decode()).encode("utf-8", "replace")
        return b"\n".join(lines), f"lines {how}", True

    def says_the_same(self) -> bool:
        return self._allocated() == self._right


# --- mutations ----------------------------------------------------------------------------------


def _of_bytes(made: random.Random, data: bytes) -> Mutant:
    changed = bytearray(data)
    done = []
    for _ in range(made.choice((1, 1, 1, 2, 5))):
        at, length = made.randrange(len(changed) or 1), made.choice((1, 4, 32, 200))
        how = made.choice(("flip", "flip", "flip", "cut", "zero", "delete", "repeat", "noise"))
        done.append(f"{how} at {at}")
        match how:
            case "flip":
                if changed:
                    changed[at] ^= 1 << made.randrange(8)
            case "cut":
                del changed[at:]
            case "zero":
                changed[at : at + length] = bytes(len(changed[at : at + length]))
            case "delete":
                del changed[at : at + length]
            case "repeat":
                changed[at:at] = changed[at : at + length]
            case "noise":
                changed[at : at + length] = made.randbytes(len(changed[at : at + length]))
    return bytes(changed), ", ".join(done), True


def _of_safetensors(made: random.Random, data: bytes, key: str) -> Mutant:
    how = made.choice((_of_bytes, _of_header, _of_tensors, _of_metadata))
    return how(made, data) if how is _of_bytes else how(made, data, key)  # type: ignore[call-arg]


def _of_header(made: random.Random, data: bytes, key: str) -> Mutant:
    """Edit what safetensors says of names, dtypes, shapes and places."""
    del key
    length = int.from_bytes(data[:8], "little")
    text = _edited_json(made, data[8 : 8 + length].decode()).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :], "header", True


def _of_tensors(made: random.Random, data: bytes, key: str) -> Mutant:
    """Swap, remove, add or change tensors; the checksums stay, are made anew, or left out."""
    tensors, names = load(data), sorted(load(data))
    one, other = made.choice(names), made.choice(names)
    how = made.randrange(8)
    match how:
        case 0 | 1:
            tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()
        case 2:
            del tensors[one]
        case 3:
            part = made.choice(
                ("scale", "lut_zero_point", "lut_scale", "lut", "indices", "mask", "x")
            )
            tensors[f"{one.rpartition('.')[0]}.{part}"] = tensors[other].clone()
        case 4:
            kinds = (torch.int32, torch.bool, torch.complex64, torch.float16, torch.float64)
            tensors[one] = tensors[one].float().to(made.choice(kinds))
        case 5:
            if tensors[one].is_floating_point():
                tensors[one] = torch.full_like(tensors[one].float(), math.nan)
        case 6:
            order = list(range(tensors[one].numel()))[::-1]
            tensors[one] = tensors[one].flatten()[order].reshape(tensors[one].shape)
        case 7:
            shape = tensors[one].shape
            forms = [(1, *shape), (*shape, 1), (-1,), shape[1:], (2, *shape)]
            tensors[one] = _shaped(tensors[one], made.choice(forms))
    what, metadata = f"tensors {how} of {one} and {other}", _metadata(data)
    seal = made.choice(("as it was", "as it was", "anew", "none"))
    if seal != "as it was":
        metadata[key] = _resealed(metadata[key], tensors, seal)
    return save(tensors, metadata), f"{what}, seal {seal}", seal == "as it was"


def _shaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    count = tensor.numel() if -1 in shape else math.prod(shape)
    return tensor.flatten().repeat(2)[:count].reshape(shape)


def _resealed(text: str, tensors: dict[str, Tensor], how: str) -> str:
    header = json.loads(text)
    del header["header_crc32"], header["crc32"]
    return sealed(header, tensors) if how == "anew" else json.dumps({**header, "version": 1})


def _of_metadata(made: random.Random, data: bytes, key: str) -> Mutant:
    """Edit our own header, and seal it anew or not."""
    metadata = _metadata(data)
    header = json.loads(metadata[key])
    edited = _edited_json(made, metadata[key])
    honest = made.random() < 0.5
    if not honest:
        del header["header_crc32"], header["crc32"]
        try:
            value = json.loads(_edited_json(made, json.dumps(header)))
            edited = sealed(value, load(data))
        except (ValueError, TypeError, RecursionError):
            pass
    metadata[key] = edited
    return save(load(data), metadata), "metadata", honest


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return found


_VALUES = (
    *("null", "true", "-1", "0", "3", "1e999", "NaN", "-Infinity", "1.5", '""', '"x"', "[]", "{}"),
    *("1" + "0" * 400, "9" * 19, "[" * 500 + "]" * 500, '{"a":' * 300 + "1" + "}" * 300),
    *('"F64"', '"I32"', '"BOOL"', '"U8"', "[0, 1]", "[[8, 8]]", '"\\ud800"', '"\\u001b[31m"'),
    *('"int32"', '"bool"', '"float16"', '"' + "y" * 5000 + '"', "[1, 1, 4, 1]", "[64]"),
)


def _edited_json(made: random.Random, text: str) -> str:
    """Put another value, or none, in a place of a JSON text, or rename a key."""
    value = json.loads(text)
    places = list(_places(value))
    if not places:
        return made.choice(_VALUES)
    holder, key = made.choice(places)
    mark = "here-comes-another-value"
    how = made.randrange(5)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[made.choice((f"{key}x", "aliases", "a.weight", "2.weight"))] = holder.pop(key)
    elif how == 2:
        others = [h[k] for h, k in places]
        holder[key] = json.loads(json.dumps(made.choice(others)))
    else:
        holder[key] = mark
    return json.dumps(value).replace(f'"{mark}"', made.choice(_VALUES))


def _places(value: Any) -> Any:
    if isinstance(value, dict):
        for key in list(value):
            yield value, key
            yield from _places(value[key])
    elif isinstance(value, list):
        for at in range(len(value)):
            yield value, at
            yield from _places(value[at])
