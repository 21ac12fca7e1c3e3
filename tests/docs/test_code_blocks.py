"""Every code block of the README and of docs/ does what its page says.

The blocks of a page run in order, in one process and one empty directory:

* ``python`` blocks share one namespace;
* ``yaml`` blocks with a ``kmeans_palettization_config`` are read as a configuration, other
  ``yaml``, ``toml`` and ``json`` blocks are parsed;
* ``console`` blocks: each line ``$ palette …`` is run and must exit with 0, or with the code in
  ``<!-- exit: 2 -->`` on a line before the block. Output lines below a command must occur in its
  output in that order; spaces count once, and ``...`` stands for anything in a line; lines
  ``# …`` are remarks;
* ``text`` and ``mermaid`` blocks are for reading.

A block with ``title="name"`` is first written to that file, for the blocks after it. A block after
``<!-- no-run: reason -->`` is not run; there may be few of those.

Pages need not seed what they draw: each begins with the random state of seed ``PALETTE_DOCS_SEED``
(0). What a page asserts holds for others, too: try some when you write it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from palette_core.errors import PaletteWarning

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "plugins").glob("*/README.md")),
]
NEEDED = {  # by page, or its folder
    "openvino_backend": "openvino",
    "transformers_bridge": "transformers_bridge",
    "big-checkpoints.md": "transformers_bridge",
    "quantized-activations.md": "coreai_opt",
    "runtimes.md": "openvino",
    "encoder.md": "openvino",
    "cnn.md": "coremltools",
    "programs.md": "coremltools",
    "unet.md": "diffusers",
    "decoder.md": "openvino",
    "whisper.md": "transformers_bridge",
}
MOST_NOT_RUN = 6
MARKER = re.compile(r"<!--\s*(no-run|exit):\s*(.*?)\s*-->")
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>.*)$")


class BlockError(AssertionError):
    """A block does not do what its page says."""


@dataclass(frozen=True)
class Block:
    page: Path
    line: int  # of the first line inside the fence, from 1
    language: str
    title: str | None
    text: str
    markers: dict[str, str]

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    blocks: list[Block] = []
    markers: dict[str, str] = {}
    lines = iter(enumerate(page.read_text(encoding="utf8").splitlines(), start=1))
    for number, line in lines:
        if fence := FENCE.match(line):
            inside = _until_closed(page, number, fence, lines)
            language, _, rest = fence["info"].strip().partition(" ")
            title = re.search(r'title="([^"]+)"', rest)
            text = textwrap.dedent("\n".join(inside)) + "\n"
            name = title[1] if title else None
            blocks.append(Block(page, number + 1, language, name, text, markers))
            markers = {}
        elif marker := MARKER.search(line):
            markers = {**markers, marker[1]: marker[2]}
        elif line.strip():
            markers = {}
    return blocks


def _until_closed(page: Path, number: int, fence: re.Match[str], lines: Any) -> list[str]:
    inside = []
    for _, line in lines:
        if line.strip() == fence["fence"]:
            return inside
        inside.append(line)
    raise BlockError(f"{page.name}:{number}: the fence is never closed")


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def run_page(page: Path) -> None:
    """Run the blocks of ``page`` in the current directory; raises at the first that fails."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    seed_everything(int(os.environ.get("PALETTE_DOCS_SEED", "0")))
    with warnings.catch_warnings():
        warnings.simplefilter("error", PaletteWarning)
        for block in blocks_of(page):
            if block.title:
                Path(block.title).parent.mkdir(parents=True, exist_ok=True)
                Path(block.title).write_text(block.text, encoding="utf8")
            if "no-run" in block.markers:
                if not block.markers["no-run"]:
                    raise BlockError(f"{block.place}: no-run gives no reason")
                continue
            try:
                run_block(block, namespace)
            except BlockError:
                raise
            except BaseException as error:
                raise BlockError(f"{block.place}: {type(error).__name__}: {error}") from error


def run_block(block: Block, namespace: dict[str, Any]) -> None:
    match block.language:
        case "python":
            # Shifted down to its place in the page, so that tracebacks point there.
            code = "\n" * (block.line - 1) + block.text
            exec(compile(code, str(block.page), "exec"), namespace)
        case "yaml":
            read_yaml(block)
        case "toml":
            tomllib.loads(block.text)
        case "json":
            json.loads(block.text)
        case "console":
            run_console(block)
        case "text" | "mermaid":
            pass
        case other:
            raise BlockError(f"{block.place}: nobody checks a block of language {other!r}")


def read_yaml(block: Block) -> None:
    content = yaml.safe_load(block.text)
    if isinstance(content, dict) and "kmeans_palettization_config" in content:
        from palette_core import KMeansPalettizerConfig

        path = Path(block.title or "block.yaml")
        path.write_text(block.text, encoding="utf8")
        KMeansPalettizerConfig.from_yaml(path)


def run_console(block: Block) -> None:
    wanted = int(block.markers.get("exit", 0))
    for command, shown in commands_of(block):
        program, *arguments = shlex.split(command)
        if program != "palette":
            raise BlockError(f"{block.place}: only palette is run here, not {program!r}")
        code, printed = run_palette(arguments)
        if code != wanted:
            raise BlockError(f"{block.place}: {command!r} exits with {code}:\n{printed}")
        check_output(block, shown, printed)


def commands_of(block: Block) -> list[tuple[str, list[str]]]:
    """Commands and the output shown below each."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line.startswith("# "):
            continue
        elif not found:
            raise BlockError(f"{block.place}: a console block starts with a line '$ palette …'")
        elif line.strip():
            found[-1][1].append(line)
    return found


def run_palette(arguments: list[str]) -> tuple[int, str]:
    from palette_core.cli import main

    printed = io.StringIO()
    kept = sys.argv
    sys.argv = ["palette", *arguments]
    code: Any = 0
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = kept
    return code, printed.getvalue()


def check_output(block: Block, shown: list[str], printed: str) -> None:
    rest = iter([" ".join(line.split()) for line in printed.splitlines()])
    for line in shown:
        words = " ".join(line.split())
        pattern = ".*".join(re.escape(part) for part in words.split("..."))
        if not any(re.fullmatch(pattern, candidate) for candidate in rest):
            raise BlockError(f"{block.place}: {line!r} is not in the output:\n{printed}")


# --- the pages ----------------------------------------------------------------------------------


def marked(page: Path) -> Any:
    """Let the environment that has coreai-opt run the pages that need it."""
    peer = NEEDED.get(page.name) == "coreai_opt"
    return pytest.param(
        page, id=str(page.relative_to(ROOT)), marks=[pytest.mark.peer] if peer else []
    )


@pytest.mark.slow
@pytest.mark.parametrize("page", [marked(page) for page in PAGES])
def test_blocks_of_page_do_what_it_says(page: Path, tmp_path: Path) -> None:
    run = [block for block in blocks_of(page) if "no-run" not in block.markers]
    if not run:
        return  # spare the process
    if any("--plot" in block.text or ".png" in block.text for block in run):
        pytest.importorskip("matplotlib")
    for parent, needed in NEEDED.items():
        if parent in (page.parent.name, page.name):
            pytest.importorskip(needed)
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, __file__, str(page)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]


def test_few_blocks_are_left_out() -> None:
    left_out = [
        f"{block.place}: {block.markers['no-run']}"
        for page in PAGES
        for block in blocks_of(page)
        if "no-run" in block.markers
    ]
    assert len(left_out) <= MOST_NOT_RUN, left_out


# --- is the check itself any good? --------------------------------------------------------------

GOOD = """
A page.

```python title="numbers.py"
six = 6
```

1. In a list:

    ```python
    from numbers_again import seven
    ```

```python
import pathlib
assert six * 7 == 42 and pathlib.Path("numbers.py").read_text() == "six = 6\\n"
```

```yaml title="w4.yaml"
kmeans_palettization_config:
  global_config:
    op_state_spec:
      weight: {n_bits: 4}
```

```console
$ palette validate \\
    w4.yaml
```

<!-- exit: 2 -->
```console
$ palette validate not-there.yaml
...not-there.yaml...
```

<!-- no-run: takes a minute -->

```python
raise RuntimeError
```
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "page.md"


def test_a_good_page_passes(page: Path) -> None:
    page.write_text(GOOD.replace("from numbers_again import seven", "assert six == 6"))
    run_page(page)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```python\nx = 1\n```\n\n```python\nassert x == 2\n```", "page.md:6: AssertionError"),
        ("```python\ndef broken(:\n```", "page.md:2: SyntaxError"),
        ("```python\nraise SystemExit(0)\n```", "page.md:2: SystemExit"),
        ("- item\n\n    ```python\n    1 / 0\n    ```", "page.md:4: ZeroDivisionError"),
        ("```yaml\na: [1\n```", "page.md:2: ParserError"),
        ("```yaml\nkmeans_palettization_config:\n  global_confg: {}\n```", "global_confg"),
        ("```yaml\nkmeans_palettization_config:\n  global_config: 3\n```", "global_config"),
        ("```toml\na = = 1\n```", "page.md:2: TOMLDecodeError"),
        ("```json\n{'a': 1}\n```", "page.md:2: JSONDecodeError"),
        ("```console\n$ palette no-such-command\n```", "exits with 2"),
        ("<!-- exit: 2 -->\n```console\n$ palette --help\n```", "exits with 0"),
        ("```console\n$ palette --help\nNever printed\n```", "'Never printed' is not in"),
        ("```console\n$ rm -r /tmp/nothing\n```", "only palette is run here, not 'rm'"),
        ("```console\npalette --help\n```", "starts with a line"),
        ("```bash\npalette --help\n```", "nobody checks a block of language 'bash'"),
        ("```\nsix = 6\n```", "nobody checks a block of language ''"),
        ("```python\nsix = 6\n", "never closed"),
        ("<!-- no-run: -->\n```bash\nls\n```", "gives no reason"),
        ("<!-- no-run: for the text only -->\ntext\n```bash\nls\n```", "language 'bash'"),
    ],
)
def test_a_broken_page_fails(page: Path, text: str, complaint: str) -> None:
    page.write_text(text)
    with pytest.raises(BlockError, match=re.escape(complaint)):
        run_page(page)


def test_warnings_of_ours_fail_a_page(page: Path) -> None:
    page.write_text(
        "```python\nimport warnings\nfrom palette_core.errors import PaletteWarning\n"
        "warnings.warn('surprise', PaletteWarning)\n```"
    )
    with pytest.raises(BlockError, match="PaletteWarning: surprise"):
        run_page(page)


@pytest.mark.slow
def test_the_page_runner_reports_failure_to_its_caller(page: Path) -> None:
    page.write_text("```python\nimport math\nmath.nothing\n```")
    done = subprocess.run(
        [sys.executable, __file__, str(page)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "page.md:2: AttributeError" in done.stderr
    assert 'page.md", line 3' in done.stderr


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
