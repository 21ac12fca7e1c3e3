"""Sources of plug-ins that do what no plug-in should, of every kind.

A plug-in is right but for one thing. `WORK` has the right ones by kind, `BEHAVIOURS` what is done
at one of their calls, `HOOKS` what goes wrong before any call: at import, in a hook, in a record.
"""

from __future__ import annotations

from dataclasses import dataclass

HEAD = '''
import asyncio, concurrent.futures, os, random, sys, threading, time
from dataclasses import replace
from typing import Literal
from pathlib import Path
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, SecretStr, computed_field, field_validator
from palette_core.plugins import *
from palette_core.plugins import hookimpl, NoOptions
from palette_core.tensors import Codebook, Features, QuantizedLut, assign

NAME = @NAME@
CALLS, KEPT = [0], []


class Own(Exception):
    pass


class MyInterrupt(KeyboardInterrupt):
    pass


class MyExit(SystemExit):
    pass


class Panic(BaseException):
    pass


class Mute(Exception):
    def __str__(self):
        raise SystemExit(9)

    __repr__ = __str__


class Two(Exception):
    def __init__(self, one, two):
        super().__init__()


class Unpicklable(Exception):
    def __init__(self):
        super().__init__(threading.Lock())


class Unreadable:
    def __repr__(self):
        raise KeyboardInterrupt

    __str__ = __len__ = __iter__ = __eq__ = __bool__ = __repr__
    __hash__ = object.__hash__


class Strange(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError("hands off")


def tensors(value, depth=0):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item, depth + 1)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item, depth + 1)
    elif isinstance(value, torch.nn.Module):
        yield from value.parameters()
        yield from value.buffers()
    elif hasattr(value, "__dataclass_fields__") and depth < 3:
        for name in value.__dataclass_fields__:
            yield from tensors(getattr(value, name), depth + 1)


def changed(made, change):
    """Return a result with every tensor in it exchanged."""
    if isinstance(made, torch.Tensor):
        return change(made)
    if hasattr(made, "_fields"):
        return type(made)(*(changed(item, change) for item in made))
    if isinstance(made, dict):
        return {key: changed(item, change) for key, item in made.items()}
    if hasattr(made, "__dataclass_fields__") and not isinstance(made, type):
        parts = {n: changed(getattr(made, n), change) for n in made.__dataclass_fields__}
        return type(made)(**parts)
    return made


def overwrite(value):
    for tensor in tensors(value):
        with torch.no_grad():
            if tensor.numel():
                tensor.data.fill_(1)


def disturb():
    torch.set_num_threads(3)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    torch.set_grad_enabled(not torch.is_grad_enabled())
    torch.set_autocast_enabled("cpu", True)
    torch.set_float32_matmul_precision("medium")
    os.chdir("/")
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    np.seterr(all="raise")


def act(where, right, *inputs):
    CALLS[0] += 1
    if where != @WHERE@:
        return right()
@BODY@
'''

# By kind: the interface's calls, and the source of the right work and of the hook. ``FIELDS``
# stands for further fields of the record.
WORK: dict[str, tuple[tuple[str, ...], str]] = {
    "clusterer": (
        ("factory", "fit"),
        """
class Work(Clusterer):
    def fit(self, problem):
        return act("fit", lambda: self.right(problem), problem)

    def right(self, problem):
        low, high = problem.points.aminmax(dim=1, keepdim=True)
        steps = torch.linspace(0, 1, problem.n_entries, dtype=torch.float64, device="cpu")
        lut = low + steps[:, None] * (high - low).double()
        return Codebook(lut, assign(problem.points, lut))


@hookimpl
def palette_core_clusterers():
    return [ClustererEntry(**{**dict(name=NAME, summary="s", interface=1, options=OPTIONS,
            factory=lambda o: act("factory", Work)), **dict(FIELDS)})]
""",
    ),
    "lut-quantizer": (
        ("factory", "quantize"),
        """
class Work(LutQuantizer):
    def quantize(self, lut):
        return act("quantize", lambda: self.right(lut), lut)

    def right(self, lut):
        top = lut.float().abs().amax((1, 2), keepdim=True).clamp(min=2.0**-100)
        scale = torch.exp2(torch.ceil(torch.log2(top / 127)))
        return QuantizedLut((lut.float() / scale).round().to(torch.int8), scale)


@hookimpl
def palette_core_lut_quantizers():
    return [LutQuantizerEntry(**{**dict(name=NAME, summary="s", interface=1, options=OPTIONS,
            factory=lambda spec, o: act("factory", Work), dtypes=("int8",)), **dict(FIELDS)})]
""",
    ),
    "granularity": (
        ("block_shape", "describe"),
        """
class Work(Granularity):
    type: Literal[NAME] = NAME

    def block_shape(self, shape, default_axis):
        right = (*shape[:default_axis], 1, *shape[default_axis + 1 :])
        return act("block_shape", lambda: right, shape)

    def describe(self, default_axis):
        return act("describe", lambda: "per channel")


@hookimpl
def palette_core_granularities():
    return [GranularityEntry(**{**dict(name=NAME, summary="s", interface=1, model=Work),
                                **dict(FIELDS)})]
""",
    ),
    "training": (
        ("factory", "forward", "harden", "advance"),
        """
class Work(TrainingStrategy):
    def forward(self, problem):
        def right():
            return problem.decode() + problem.weight - problem.weight.detach()
        return act("forward", right, problem)

    def harden(self, problem):
        return act("harden", lambda: assign(problem.points(), problem.lut), problem)

    def advance(self, problem):
        return act("advance", lambda: problem.lut * 1, problem)


@hookimpl
def palette_core_training_strategies():
    return [TrainingStrategyEntry(**{**dict(name=NAME, summary="s", interface=1, options=OPTIONS,
            factory=lambda o: act("factory", Work), moves_lut=True), **dict(FIELDS)})]
""",
    ),
    "backend": (
        ("factory", "check_support", "check_program", "check_place", "finalize", "export"),
        """
class Work(Backend):
    def check_support(self, facts):
        return act("check_support", lambda: None, facts)

    def check_program(self, model, example_inputs, dynamic_shapes=None):
        return act("check_program", lambda: (), model, example_inputs)

    def check_place(self, path):
        return act("check_place", lambda: None)

    def finalize(self, model, palettized):
        return act("finalize", lambda: model, model)

    def export(self, model, example_inputs, path, dynamic_shapes=None):
        def right():
            with torch.no_grad():
                found = model(*(example_inputs or ()))
            path.write_bytes(found.numpy().tobytes())
            return path
        return act("export", right, model, example_inputs)


@hookimpl
def palette_core_export_backends():
    return [ExportBackendEntry(**{**dict(name=NAME, summary="s", interface=1, options=OPTIONS,
            factory=lambda o: act("factory", Work), suffix=".hostile"), **dict(FIELDS)})]
""",
    ),
    "metric": (
        ("factory", "loss"),
        """
class Work(SensitivityMetric):
    def loss(self, candidate):
        def right():
            error = candidate.weight.double() - candidate.decoded.double()
            return float(error.square().sum())
        outputs = ()
        if candidate.outputs is not None:
            outputs = (candidate.outputs(None), candidate.outputs(candidate.decoded))
        return act("loss", right, candidate, *outputs)


@hookimpl
def palette_core_sensitivity_metrics():
    return [SensitivityMetricEntry(**{**dict(name=NAME, summary="s", interface=1, options=OPTIONS,
            factory=lambda o: act("factory", Work)), **dict(FIELDS)})]
""",
    ),
    "operation": (
        ("factory", "channel_axis", "consumptions"),
        """
class Work(Operation):
    def channel_axis(self, call, weight):
        return act("channel_axis", lambda: 1, dict(call.arguments), weight)

    def consumptions(self, call):
        def right():
            return [Consumption(call["weight"], (call["x"],), Features(rows=(1,)))]
        return act("consumptions", right, dict(call.arguments))


@hookimpl
def palette_core_operations():
    return [OperationEntry(**{**dict(name="attack.project", summary="s", interface=1,
            aliases=(NAME,), factory=lambda o: act("factory", Work), channel_axis=1),
            **dict(FIELDS)})]
""",
    ),
    "stored-form": (
        ("factory", "encode", "decode", "expects", "size_in_bits", "size_unencoded", "shape"),
        """
class Work(StoredForm):
    parts = ("bytes",)
    operator = NAME.replace("-", "_") + "::depalettize"

    def encode(self, tensor):
        return act("encode", lambda: {"bytes": tensor.indices}, tensor)

    def decode(self, stored):
        return act("decode", lambda: stored.with_indices(stored.parts["bytes"]), stored)

    def expects(self, stored):
        return act("expects", lambda: {"bytes": Part(torch.uint8, tuple(stored.index_shape))},
                   stored)

    def size_in_bits(self, stored):
        return act("size_in_bits", lambda: super(Work, self).size_in_bits(stored), stored)

    def size_unencoded(self, tensor):
        return act("size_unencoded", lambda: None, tensor)

    def shape(self, stored):
        return act("shape", lambda: super(Work, self).shape(stored), stored)


@hookimpl
def palette_core_stored_forms():
    return [StoredFormEntry(**{**dict(name=NAME, summary="s", interface=1,
            factory=lambda o: act("factory", Work)), **dict(FIELDS)})]
""",
    ),
    "command": (
        ("factory", "run"),
        """
class Work(Command):
    def run(self, arguments):
        return act("run", lambda: print("Hello"))


@hookimpl
def palette_core_commands():
    return [CommandEntry(**{**dict(name=NAME, summary="s", interface=1,
            factory=lambda o: act("factory", Work)), **dict(FIELDS)})]
""",
    ),
}


@dataclass(frozen=True)
class Behaviour:
    """Something that a plug-in does at one of its calls.

    Attributes:
        code: the rest of ``act``.
        is_harmless: the result is nevertheless that of the right plug-in.
        draws: it moves the global random states.
    """

    code: str
    is_harmless: bool = False
    draws: bool = False


RAISED = (
    *("Own('no licence')", "ValueError('\\x1b[31m' * 3)", "TypeError()", "AssertionError()"),
    *("KeyError(('a', 3))", "OSError(28, 'No space left on device')", "StopIteration(3)"),
    *("KeyboardInterrupt()", "MyInterrupt()", "SystemExit(3)", "MyExit()", "GeneratorExit()"),
    *("asyncio.CancelledError()", "concurrent.futures.CancelledError()", "Panic('thread')"),
    *("BaseException('all')", "Mute()", "Two(1, 2)", "Unpicklable()", "RecursionError()"),
    *("Own('long ' * 100_000)", "ExceptionGroup('g', [Mute()])", "torch.cuda.CudaError(2)"),
    *("UnicodeDecodeError('utf8', b'x', 0, 1, 'r')", "FileNotFoundError('gone')", "EOFError()"),
)
RETURNED = (
    *("None", "3", "-1", "'text'", "Unreadable()", "[]", "{}", "float('nan')", "10**400", "True"),
    *("torch.zeros(3)", "np.zeros(3)", "object", "lambda: 3", "(1, 2)", "torch.nn.Linear(2, 2)"),
    *("Path('/nowhere')", "torch.zeros(2, 2).as_subclass(Strange)", "(x for x in range(3))"),
)
CHANGED = (
    *("lambda t: t.double() * float('nan')", "lambda t: t.to(torch.int64)", "lambda t: t[:0]"),
    *("lambda t: t.half()", "lambda t: t.bool()", "lambda t: t.to('meta')", "lambda t: t[None]"),
    *("lambda t: t.numpy(force=True)", "lambda t: t.tolist()", "lambda t: t.to_sparse()"),
    *("lambda t: t.as_subclass(Strange)", "lambda t: t + 100", "lambda t: t.flatten()"),
    *("lambda t: t.to(torch.complex64)", "lambda t: -t.float()", "lambda t: None"),
    *("lambda t: t.double() * 1e300", "lambda t: t.expand(2, *t.shape)", "lambda t: 7"),
)
VIEWS = (
    "lambda t: t.repeat(2, *[1] * (t.dim() - 1))[: len(t)]",
    "lambda t: t.transpose(0, -1).contiguous().transpose(0, -1)",
)

BEHAVIOURS: dict[str, Behaviour] = {
    **{f"raises {text}": Behaviour(f"    raise {text}") for text in RAISED},
    **{
        # A new layer draws its weights.
        f"returns {text}": Behaviour(f"    return {text}", draws="torch.nn.Linear" in text)
        for text in RETURNED
    },
    **{f"changes by {text}": Behaviour(f"    return changed(right(), {text})") for text in CHANGED},
    **{
        f"returns what looks like {text}": Behaviour(f"    return changed(right(), {text})", True)
        for text in VIEWS
    },
    "writes after it has looked": Behaviour(
        "    made = right()\n    overwrite(inputs)\n    return made"
    ),
    "writes before it looks": Behaviour("    overwrite(inputs)\n    return right()"),
    "writes through numpy": Behaviour(
        "    made = right()\n    for t in tensors(inputs):\n"
        "        if not t.is_sparse and t.numel():\n            t.detach().numpy()[...] = 1\n"
        "    return made"
    ),
    "writes, and raises": Behaviour("    overwrite(inputs)\n    raise Own('after')"),
    "keeps what it was given": Behaviour(
        "    overwrite(KEPT)\n    made = right()\n    KEPT.append(inputs)\n    return made"
    ),
    "keeps what it returned": Behaviour(
        "    overwrite(KEPT)\n    made = right()\n    KEPT.append(made)\n    return made"
    ),
    "uses one buffer": Behaviour(
        "    made = right()\n"
        "    def buffered(t):\n"
        "        key = (t.dtype, len(CALLS))\n"
        "        base = next((b for k, b in KEPT if k == key), None)\n"
        "        if base is None:\n"
        "            base = torch.empty(10_000, dtype=t.dtype)\n"
        "            KEPT.append((key, base))\n"
        "        CALLS.append(0)\n"
        "        return base[: t.numel()].view(t.shape).copy_(t.detach())\n"
        "    made = changed(made, buffered)\n    del CALLS[1:]\n    return made"
    ),
    "disturbs the process": Behaviour(
        "    made = right()\n    disturb()\n    return made", True, True
    ),
    "disturbs the process first": Behaviour("    disturb()\n    return right()", draws=True),
    "disturbs the process, and raises": Behaviour(
        "    disturb()\n    raise Own('after')", draws=True
    ),
    "takes its time": Behaviour("    time.sleep(0.05)\n    return right()", True),
    "starts a thread": Behaviour(
        "    t = threading.Thread(target=sum, args=([1],))\n    t.start()\n    t.join()\n"
        "    return right()",
        True,
    ),
    "raises at the third call": Behaviour(
        "    if CALLS[0] >= 3:\n        raise Own('third')\n    return right()"
    ),
    "is right": Behaviour("    return right()", True),
}

# What goes wrong before any call, by what it is called: the whole of a hooks module, after `HEAD`.
HOOKS: dict[str, str] = {
    **{f"raises {text} at import": f"raise {text}" for text in RAISED},
    "disturbs the process at import": "disturb()",
    "takes its time at import": "time.sleep(0.2)",
    "exits at import": "sys.exit(0)",
    "stops its hooks at import": "del hookimpl",
    "has a thread at import": "threading.Thread(target=time.sleep, args=(0.1,)).start()",
}

# Fields of records that say what is not true, or are none, by kind; "" goes for all kinds.
LIES: dict[str, tuple[str, ...]] = {
    "": (
        *("summary='\\x1b[31m'", "summary='x' * 100_000", "summary=3", "summary=Unreadable()"),
        *("interface=2", "interface=None", "interface=True", "interface=Unreadable()"),
        *("factory=None", "factory=type", "factory=Unreadable()"),
    ),
    "clusterer": (
        *("supports_vector=True", "supports_scalar=False", "supports_importance=True"),
        *("fits_quantized=True", "keeps_zeros=True", "needs_moments=True", "supports_cuda=True"),
        *("thread_safe=True", "deterministic=False", "default_for_scalars=True"),
        *("damping=lambda o: -1", "damping=lambda o: act('fit', lambda: 0.1)", "damping=3"),
        *("needs_moments=True, damping=lambda o: 1 / 0", "default_for_vectors=True"),
    ),
    "lut-quantizer": (
        *("dtypes=('float16',)", "dtypes=('int8', 'uint8')", "dtypes=()", "is_default=True"),
        *("dtypes=('int8', 3)", "error_bound=0.0", "error_bound=None", "thread_safe=True"),
        *("dtypes=('int64',), is_default=True", "dtypes=['int8']", "error_bound=Unreadable()"),
    ),
    "granularity": ("model=None", "model=Granularity", "model=int", "options=NoOptions"),
    "training": ("trains_lut=True", "moves_lut=False, trains_lut=True", "moves_lut=1"),
    "backend": (
        *("suffix='.safetensors'", "suffix=''", "suffix='/x'", "suffix='.a.b'", "suffix='.\\x1b'"),
        *("supports_mmap=True", "leaves_dense=True", "stored_forms=('sparse',)", "stored_forms=()"),
        *("beside=('.more',)", "beside=('.safetensors',)", "beside=('',)", "beside=('/../x',)"),
        *("beside=('.hostile',)", "beside=3", "suffix=Unreadable()", "suffix='.' + 'x' * 300"),
    ),
    "metric": (
        *("needs_squares=True", "needs_moments=True", "needs_outputs=True"),
        "needs_squares=True, needs_moments=True, needs_outputs=True",
    ),
    "operation": (
        *("aliases=('linear',)", "aliases=('__matmul__',)", "aliases=('torch.ops.aten.linear_',)"),
        *("aliases=('addmm_',)", "aliases=3", "aliases=('x' * 100_000,)", "aliases=('',)"),
        *("module_types=('torch.nn.Linear',)", "internal_forms=('linear',)", "channel_axis=99"),
        *("part_types=('torch.nn.Linear',)", "argument_axes={'weight': -99}", "channel_axis=1.5"),
        *("parameters=('y',)", "parameters=('*a', '*b')", "is_default=True", "argument_axes=3"),
        *("module_types=('torch.nn.modules.linear.Linear',)", "module_types=('no.such.Type',)"),
        *("argument_axes={3: 'x'}", "internal_forms=('attack.project',)", "name='linear'"),
    ),
    "stored-form": (),
    "command": (),
}

NAMES = (
    *("'x' * 100_000", "''", "None", "3", "'Hostile'", "'\\x1b[31m'", "'hostile\\n'", "'a b'"),
    *("Unreadable()", "type('S', (str,), {'__hash__': None})('hostile-str')", "'ho/stile'"),
    *("'kmeans1d'", "'per_tensor'", "'integer'", "'frozen'", "'packed'", "'fisher'", "'linear'"),
    *("'indices'", "'sparse'", "'plan'", "'verify'", "'torch'", "'coreai'", "'..'", "'.'"),
)

OPTIONS = (
    "dict",
    "type('Loose', (BaseModel,), {})",
    "BaseModel",
    "NoOptions()",
    "Unreadable()",
    "type('Odd', (NoOptions,), {'__annotations__': {'f': type(lambda: 0)}})",
    "type('Odd', (NoOptions,), {'model_json_schema': classmethod(lambda c: 1 / 0)})",
    "type('Odd', (NoOptions,), {'model_json_schema': classmethod(lambda c: 'no schema')})",
    "type('Odd', (NoOptions,), {'__init__': lambda s, **k: sys.exit(4)})",
    "type('Odd', (NoOptions,), {'model_post_init': lambda s, c: 1 / 0})",
    "type('Odd', (NoOptions,), {'model_post_init': lambda s, c: (_ for _ in ()).throw(Mute)})",
    "type('Odd', (NoOptions,), {'model_post_init': lambda s, c: (_ for _ in ()).throw(Panic)})",
    "type('Odd', (NoOptions,), {'__annotations__': {'f': int}})",
    "type('Odd', (NoOptions,), {'__annotations__': {'f': SecretStr}, 'f': SecretStr('key')})",
    "type('Odd', (NoOptions,), {'__getattribute__': lambda s, n: 1 / 0})",
    "type('Odd', (NoOptions,), {'model_validate': classmethod(lambda c, v: 3)})",
    "type('Odd', (NoOptions,), {'model_validate': classmethod(lambda c, v: disturb() or c())})",
)

# Records that are no records, by what is put in the place of the list that a hook returns.
LISTS = (
    *("None", "3", "Unreadable()", "made[0]", "made * 2", "[made]", "(x for x in made)", "{}"),
    *("[None]", "[vars(made[0])]", "made + [3]", "[Unreadable()]", "iter(lambda: made[0], None)"),
    "[type('Sub', (type(made[0]),), {'claims': lambda s: 1 / 0})(**fields)]",
    "[type('Sub', (type(made[0]),), {'claims': lambda s: frozenset({3})})(**fields)]",
    "[type('Sub', (type(made[0]),), {'check': lambda s: disturb()})(**fields)]",
    "[type('Sub', (type(made[0]),), {'claims': lambda s: CALLS.append(0) or "
    "(frozenset() if len(CALLS) < 3 else 1 / 0)})(**fields)]",
    "[type('Sub', (type(made[0]),), {'__hash__': None, '__eq__': lambda s, o: 1 / 0})(**fields)]",
    "[type('Sub', (type(made[0]),), {'__getattribute__': lambda s, n: "
    "object.__getattribute__(s, n) if CALLS.append(0) or len(CALLS) < 40 else 1 / 0})(**fields)]",
)

RELISTED = """
_hook = next(v for n, v in list(globals().items()) if n.startswith("palette_core_"))
_name = next(n for n in globals() if n.startswith("palette_core_"))


def again():
    made = _hook()
    fields = {n: getattr(made[0], n) for n in made[0].__dataclass_fields__}
    return @VALUE@


again.__name__ = _name
globals()[_name] = hookimpl(again)
"""

METADATA = (
    "Metadata-Version: 2.1\n",
    "",
    "Metadata-Version: 2.1\nName: \nVersion: 1\n",
    "Name: hostile-plugin\nVersion: \x1b[31m\n",
    "Name: " + "x" * 100_000 + "\nVersion: 1\n",
    "Name: palette-core\nVersion: 99\n",
    "Name: PALETTE_CORE\nVersion: 99\n",
    "Name: hostile plugin\nVersion: no version at all\n",
    "\udcff\x00",
)
POINTS = (
    "[palette_core]\nmain = hostile_plugin.hooks\nmore = hostile_plugin.hooks\n",
    "[palette_core]\nmain = hostile_plugin.hooks\nmain = hostile_plugin.hooks\n",
    "[palette_core]\nmain = hostile_plugin\n",
    "[palette_core]\nmain = hostile_plugin.hooks:NAME\n",
    "[palette_core]\nmain = hostile_plugin.hooks:no.such.thing\n",
    "[palette_core]\nmain = os:path\n",
    "[palette_core]\nmain = \n",
    "[palette_core]\n= hostile_plugin.hooks\n",
    "[palette_core]\n\x1b[31m = hostile_plugin.hooks\n",
    "[palette_core]\nmain = hostile_plugin.hooks [extra]\n",
    "[palette_core\nmain = hostile_plugin.hooks\n",
    "[palette_core]\nmain hostile_plugin.hooks\n",
    "[palette_core]\n" + "".join(f"m{n} = hostile_plugin.hooks\n" for n in range(300)),
    "[palette_core]\nmain = palette_core.builtins.clusterers.kmeans1d.hooks\n",
)
