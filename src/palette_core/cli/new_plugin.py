"""Make a plug-in distribution from the templates, for an author to change."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import as_file, files
from pathlib import Path

from palette_core.errors import ConfigError, MissingExtraError
from palette_core.plugins import INTERFACE_VERSION

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_COMMON = "common"


class Kind(StrEnum):
    """Kind of a new plug-in."""

    CLUSTERER = "clusterer"
    GRANULARITY = "granularity"
    LUT_QUANTIZER = "lut-quantizer"
    BACKEND = "backend"
    TRAINING = "training"
    METRIC = "metric"
    OPERATION = "operation"
    STORED_FORM = "stored-form"
    COMMAND = "command"


@dataclass(frozen=True)
class _Text:
    """Text of a kind in the README: what it is, how it is picked, where the work is."""

    what: str
    usage: str
    work: str


def _in_config(line: str) -> str:
    return f"""In a configuration:

```yaml
kmeans_palettization_config:
  global_config:
    op_state_spec:
      weight:
        {line}
```"""


_TEXTS = {
    Kind.CLUSTERER: _Text(
        "A clustering algorithm",
        _in_config("algorithm: {entry}"),
        "`clusterer.py`**: `fit`, which turns points into entries and codes. Declare in\n"
        "  `hooks.py` what it can do: vectors, importance, moments.",
    ),
    Kind.GRANULARITY: _Text(
        "A granularity",
        _in_config("granularity: {{type: {entry}, side: 4}}"),
        "`granularity.py`**: `block_shape`, which says how many elements of each axis share a\n"
        "  table, and the options, which are fields of the class.",
    ),
    Kind.LUT_QUANTIZER: _Text(
        "A LUT quantizer",
        _in_config("lut_qspec: {{dtype: int8, quantizer: {entry}}}"),
        "`quantizer.py`**: `quantize`, which turns tables into 8-bit values and a scale. Declare\n"
        "  in `hooks.py` its dtypes, and the error that it promises.",
    ),
    Kind.BACKEND: _Text(
        "An export backend",
        """From a prepared model:

```python
palettizer.export("model.npz", backend="{entry}")
```""",
        "`backend.py`**: `check_support`, what the format has no form for, and `export`, which\n"
        "  writes it. In `tests/test_contract.py`, `read_weights` has to read what you write.",
    ),
    Kind.TRAINING: _Text(
        "A training strategy",
        _in_config("training_strategy: {entry}"),
        "`strategy.py`**: `forward`, which says what the weight is while the model trains, and\n"
        "  `harden`, which says what stands for it in the end.",
    ),
    Kind.STORED_FORM: _Text(
        "A stored form",
        _in_config("stored_form: {entry}"),
        "`form.py`**: `encode`, which turns indices into parts, `decode`, which gets them back,\n"
        "  and `expects`, which says what the parts look like in a file.",
    ),
    Kind.METRIC: _Text(
        "A sensitivity metric",
        """When a budget of bits is spent:

```text
palette allocate FACTORY --target-bpw 3 --metric {entry} -o chosen.yaml
```""",
        "`metric.py`**: `loss`, which predicts what a candidate costs the model. Declare in\n"
        "  `hooks.py` what it looks at: squares, moments, outputs.",
    ),
    Kind.OPERATION: _Text(
        "An operation of `torch.library` that takes a weight",
        """In a configuration:

```yaml
kmeans_palettization_config:
  global_config:
    op_type_config:
      {entry}: {{}}
```""",
        "`library.py`**: the operation itself; put your own in its place, or import it.\n"
        "* **`src/{package}/operation.py`**: `consumptions`, which says what the weight is\n"
        "  multiplied with. Declare in `hooks.py` its output-channel axis, and whether it is\n"
        "  palettized unasked. In `tests/test_contract.py`, `calls` has to call it.",
    ),
    Kind.COMMAND: _Text(
        "A command of `palette`",
        """On the command line:

```text
palette {entry} packed.safetensors
```""",
        "`command.py`**: `run`, which reads the arguments, also `--help`, and does the work.",
    ),
}


def make_plugin(name: str, kind: Kind, into: Path) -> Path:
    """Write a distribution that installs, is listed and keeps its contract.

    Args:
        name: of the distribution, such as ``palette-lloyd``.
        kind: what it provides.
        into: the folder in which its own folder is made.

    Returns:
        The distribution's folder.

    Raises:
        ConfigError: the name cannot be one, or the folder exists.
        MissingExtraError: copier is not installed.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a distribution here; use lower-case letters, digits "
            "and single '-', such as palette-lloyd"
        )
    folder = into / name
    if folder.exists():
        raise ConfigError(f"{folder} exists; choose another name, or another --into")
    try:
        from copier import run_copy
    except ImportError as error:
        raise MissingExtraError(
            "palette new-plugin needs copier: pip install palette-core[new-plugin]"
        ) from error
    data = _answers(name, kind)
    with as_file(files("palette_core.cli") / "templates") as templates:
        for part in (_COMMON, kind.value):
            # A kind's own files replace those that all have.
            run_copy(str(templates / part), folder, data=data, quiet=True, overwrite=True)
    return folder


def _answers(name: str, kind: Kind) -> dict[str, object]:
    package = name.replace("-", "_")
    entry = package.removeprefix("palette_")
    text = _TEXTS[kind]
    return {
        "name": name,
        "package": package,
        "entry": entry,
        "kind": kind.value,
        "interface": INTERFACE_VERSION,
        "what": text.what,
        "usage": text.usage.format(entry=entry),
        "steps": f"* **`src/{package}/{text.work.removeprefix('`')}".replace("{package}", package),
    }
