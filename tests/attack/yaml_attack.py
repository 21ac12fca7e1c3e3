"""Random YAML files as configs: each loads and plans, or is refused with an error of ours."""

from __future__ import annotations

import gc
import io
import random
import string
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field

import torch

from palette_core import KMeansPalettizerConfig
from palette_core.errors import ConfigError, PaletteError
from palette_core.model.graph import ModelGraph, ModuleRecord, Owner, TensorRecord, Use
from palette_core.planning import make_plan
from palette_core.plugins.catalog import get_catalog

SECONDS = 2.0  # of processor time
LINE = 2_000  # characters

VALID = """\
palettization_spec:
  small: &small {n_bits: 4, granularity: {type: per_grouped_channel, axis: 0, group_size: 4}}
  pairs: &pairs
    n_bits: 2
    cluster_dim: 2
    lut_qspec: {dtype: int8, qscheme: symmetric}
kmeans_palettization_config:
  global_config:
    op_state_spec: {weight: *small, bias: null}
    op_type_config:
      embedding: {op_state_spec: {weight: *small}}
    op_name_config:
      ".*linear": {op_state_spec: {"*": *small}}
  module_type_configs:
    torch.nn.Conv2d: null
    torch.nn.Linear:
      enable_fast_kmeans_mode: false
      op_state_spec: {weight: *pairs}
      pat_schedule: {enable_fake_palettize: 3}
  module_name_configs:
    "layers\\\\.[0-9]+": {module_state_spec: {weight: {<<: *small, n_bits: 6}}}
    head: null
  seed: 7
"""

KEYS = [
    *("palettization_spec", "kmeans_palettization_config", "global_config", "module_type_configs"),
    *("module_name_configs", "op_state_spec", "module_state_spec", "op_type_config", "seed"),
    *("op_name_config", "weight", "'*'", "<<", "n_bits", "granularity", "type", "group_size"),
    *("axis", "cluster_dim", "lut_qspec", "dtype", "algorithm", "algorithm_options", "head"),
    *("torch.nn.Linear", "linear", "layers.0", "training_strategy", "rounding_precision", "0.10"),
    *("enable_per_channel_scale", "preserve_zero", "pat_schedule", "qscheme", "scale_dtype", "?"),
]
SCALARS = [
    *("4", "3", "-1", "0", "null", "true", "int8", "per_tensor", "per_grouped_channel", "kmeans1d"),
    *("1e999", ".nan", ".inf", "0x" + "f" * 200, "9" * 5000, "-" + "9" * 80, "1:2:3", "0b12"),
    *("2024-02-30", "2024-01-01T99:99:99Z", "!!float abc", "!!int ''", "!!bool x", "!!binary '*'"),
    *("!!timestamp x", "!!python/object:os.system x", "!custom x", "!!set {a}", "!!omap [a: 1]"),
    *(
        '"\\e[31m"',
        '"\\0"',
        '"\\ud800"',
        '"\\u202e"',
        "'" + "x" * 5000 + "'",
        "!!null 3",
        "!!str 3",
    ),
    *("'('", "'a{99999999999}'", "'(a|aa)+[.,]'", "'[[:a]'", "'" + "(" * 500 + ")" * 500 + "'"),
    *("*a1", "*a2", "&a1 [*a1]", "&a2 {x: *a2}", "[]", "{}", "[[[[1]]]]", "~", "''", "|\n x", "= "),
]


@dataclass
class Outcome:
    """What became of the files, by kind, and the files that broke the promise."""

    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


def attack(count: int, seed: int = 0) -> Outcome:
    """Read ``count`` random files."""
    gc.collect()
    gc.freeze()  # what earlier tests left is no work of the reader's
    try:
        return _attack(count, seed)
    finally:
        gc.unfreeze()


def _attack(count: int, seed: int) -> Outcome:
    made, outcome = random.Random(seed), Outcome()
    for number in range(count):
        text = made.choice((_mutant, _mutant, _tree, _bomb, _many))(made)
        started = time.thread_time()
        kind, broken = _try(text)
        seconds = time.thread_time() - started
        if kind == "refused" and seconds > SECONDS:
            broken = f"took {seconds:.1f} s"
        outcome.counts[kind] += 1
        if broken:
            outcome.broken.append(f"seed {seed}, file {number}: {broken}: {text[:300]!r}")
    return outcome


def _try(text: str) -> tuple[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = KMeansPalettizerConfig.from_yaml(io.StringIO(text))
    except ConfigError as error:
        return "refused", _unfit(str(error))
    except BaseException as error:
        return "foreign", f"reading raised {type(error).__name__}: {error}"
    try:
        if KMeansPalettizerConfig.from_yaml(io.StringIO(config.to_yaml())) != config:
            return "loaded", "is another config once written and read again"
        make_plan(GRAPH, config, get_catalog())
    except PaletteError as error:
        return "not planned", _unfit(str(error))
    except BaseException as error:
        return "foreign", f"planning raised {type(error).__name__}: {error}"
    return "planned", ""


def _unfit(message: str) -> str:
    """Return why a message is not fit to be shown on a terminal, or an empty string."""
    lines = message.split("\n")
    longest = max(map(len, lines))
    if len(lines) > 50 or longest > LINE:
        return f"the message has {len(lines)} lines of up to {longest} characters"
    if not all(line.isprintable() for line in lines):
        return "the message holds what a terminal obeys"
    return ""


def _mutant(made: random.Random) -> str:
    """Change a few places of a valid file."""
    text = VALID
    for _ in range(made.randint(1, 3)):
        at = made.randrange(len(text))
        lines = text.split("\n")
        line = made.randrange(len(lines))
        match made.randrange(6):
            case 0:
                text = text[:at] + made.choice(string.printable) + text[at + 1 :]
            case 1:
                text = text[:at] + text[at + made.randint(1, 8) :]
            case 2:
                text = text[:at] + made.choice(SCALARS) + text[at:]
            case 3:
                lines[line] = lines[made.randrange(len(lines))]
                text = "\n".join(lines)
            case 4:
                head = lines[line].partition(":")[0]
                lines[line] = f"{head}: {made.choice(SCALARS)}"
                text = "\n".join(lines)
            case 5:
                lines[line] = " " * made.randrange(6) + lines[line]
                text = "\n".join(lines)
    return text


def _tree(made: random.Random) -> str:
    """Nest known keys and odd values at random, a few levels or a thousand."""
    if made.random() < 0.1:
        opened = made.choice(("[", "{a: ", "- ", "? "))
        return "kmeans_palettization_config: " + opened * made.choice((20, 200, 3000))
    return f"{made.choice(KEYS[:2])}: {_node(made, made.randint(1, 7))}\n" * made.randint(1, 2)


def _node(made: random.Random, depth: int) -> str:
    if depth == 0 or made.random() < 0.2:
        return made.choice(SCALARS)
    anchor = made.choice(("", "", "", "&a1 ", "&a2 "))
    inner = [_node(made, depth - 1) for _ in range(made.randint(0, 4))]
    if made.random() < 0.15:
        return f"{anchor}[{', '.join(inner)}]"
    return anchor + "{" + ", ".join(f"{made.choice(KEYS)}: {value}" for value in inner) + "}"


def _bomb(made: random.Random) -> str:
    """Repeat aliases of aliases, where values are taken as they are and where they are not."""
    width, depth = made.randint(2, 12), made.randint(2, 30)
    leaf = "x" * made.choice((1, 1000))
    lines = [f"      a0: &a0 [{leaf}, 1]"]
    for level in range(1, depth):
        inner = ", ".join([f"*a{level - 1}"] * width)
        shape = made.choice((f"[{inner}]", f"{{<<: [{inner}], k{level}: 1}}"))
        lines.append(f"      a{level}: &a{level} {shape}")
    place = made.choice(("algorithm_options", "training_strategy_options", "granularity"))
    return (
        "kmeans_palettization_config: {global_config: {op_state_spec: {weight:\n"
        f"    {{{place}: {{\n" + ",\n".join(lines) + "}}}}}\n"
    )


def _many(made: random.Random) -> str:
    """Give very many keys, or very long ones."""
    count = made.choice((10, 10, 300, 300, 3000))
    key = made.choice(("k{0}", "layers.{0}", "a{0}|b", '"\\e[3{0}m"', "(a{0}", "torch.nn.L{0}"))
    value = made.choice(("null", "1", "{}", "{op_state_spec: {w: {n_bits: 5}}}"))
    place = made.choice(
        (
            "{}",
            "{{global_config: {}}}",
            "{{module_name_configs: {}}}",
            "{{module_type_configs: {}}}",
        )
    )
    inner = ", ".join(f"{key.format(number)}: {value}" for number in range(count))
    long = f", ? {'y' * 100_000} : 1" if made.random() < 0.2 else ""
    return "kmeans_palettization_config: " + place.format("{" + inner + long + "}")


def _layer(name: str) -> TensorRecord:
    use = Use(name, "linear", f"{name}.linear")
    return TensorRecord((Owner(name, "weight"),), (8, 8), torch.float32, "parameter", (use,))


_NAMES = ("layers.0", "layers.1", "head", "a" * 35)
GRAPH = ModelGraph(
    tuple(ModuleRecord((name,), "torch.nn.modules.linear.Linear") for name in _NAMES),
    tuple(map(_layer, _NAMES)),
)
