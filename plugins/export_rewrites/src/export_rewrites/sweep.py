"""Try a converter on every small program, and say what it makes of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from export_rewrites.programs import FAMILIES, Program
from palette_core.errors import BackendError

Run = Callable[[nn.Module, tuple[Tensor, ...]], Sequence[Tensor]]


@dataclass(frozen=True)
class Verdict:
    """Verdict on a program.

    Attributes:
        word: ``right``, equal to torch; ``refused``, with an error of ours; or ``wrong``.
        reason: the error, or how far off.
    """

    word: Literal["right", "refused", "wrong"]
    reason: str = ""


def judge(program: Program, run: Run) -> Verdict:
    """Compare what a runtime computes with what torch computes.

    Args:
        program: to try.
        run: converts a model on example inputs and returns its outputs on them, in order; raises
            `BackendError` where that is refused.
    """
    model = program.make()
    wanted = _outputs(model, program)
    try:
        got = run(model, program.inputs)
    except BackendError as error:
        return Verdict("refused", " ".join(str(error).split()))
    return _compared(got, wanted)


def judge_all(programs: Sequence[Program], run: Run, *, at_once: int = 16) -> dict[str, Verdict]:
    """Judge programs, many in one conversion; by name.

    What is not right in the company of others, and whoever was with something that is refused, is
    judged alone.

    Args:
        programs: to try.
        run: see `judge`.
        at_once: how many are converted together.
    """
    found: dict[str, Verdict] = {}
    for start in range(0, len(programs), at_once):
        some = programs[start : start + at_once]
        found |= {name: v for name, v in _together(some, run).items() if v.word == "right"}
    return {p.name: found[p.name] if p.name in found else judge(p, run) for p in programs}


def _together(programs: Sequence[Program], run: Run) -> dict[str, Verdict]:
    """Return verdicts on programs in one conversion; none where that is refused."""
    models = [program.make() for program in programs]
    wanted = [_outputs(m, p) for m, p in zip(models, programs, strict=True)]
    inputs = tuple(tensor for program in programs for tensor in program.inputs)
    try:
        got = list(run(_Beside(models, [len(p.inputs) for p in programs]), inputs))
    except BackendError:
        return {}
    if len(got) != sum(map(len, wanted)):
        return {}
    parts = [[got.pop(0) for _ in outputs] for outputs in wanted]
    return {
        program.name: _compared(part, outputs)
        for program, part, outputs in zip(programs, parts, wanted, strict=True)
    }


class _Beside(nn.Module):
    """Models beside each other, each with inputs of its own; all their outputs in a row."""

    def __init__(self, models: Sequence[nn.Module], counts: Sequence[int]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self._counts = list(counts)
        self.train(False)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run all."""
        given, made = iter(inputs), []
        for model, count in zip(self.models, self._counts, strict=True):
            outputs = model(*(next(given) for _ in range(count)))
            made += [torch.as_tensor(leaf) for leaf in tree_leaves(outputs)]
        return tuple(made)


def _outputs(model: nn.Module, program: Program) -> list[Tensor]:
    with torch.no_grad():
        return [torch.as_tensor(leaf) for leaf in tree_leaves(model(*program.inputs))]


def _compared(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> Verdict:
    if len(got) != len(wanted):
        return Verdict("wrong", f"{len(got)} outputs instead of {len(wanted)}")
    # Some runtimes have no tensors without dimensions.
    alone = [
        one.reshape(other.shape) if one.numel() == other.numel() == 1 else one
        for one, other in zip(got, wanted, strict=True)
    ]
    for one, other in zip(alone, wanted, strict=True):
        if one.shape != other.shape:
            return Verdict("wrong", f"shape {tuple(one.shape)} instead of {tuple(other.shape)}")
        if not torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-5, equal_nan=True):
            return Verdict("wrong", f"{one.reshape(-1)[:4]} instead of {other.reshape(-1)[:4]}")
    return Verdict("right")


def section(verdicts: Mapping[str, Verdict], told: Callable[[str], str] = str) -> str:
    """Return the part of the page that tells about one converter.

    Args:
        verdicts: of all programs, by name.
        told: shortens a reason.
    """
    lines = ["| | right | refused | wrong |", "|---|---|---|---|"]
    for family, programs in FAMILIES.items():
        lines.append(_row(family, (verdicts[program.name] for program in programs)))
    lines.append(_row("together", verdicts.values()))
    others = {name: item for name, item in verdicts.items() if item.word != "right"}
    if others:
        lines += ["", "| program | | reason |", "|---|---|---|"]
        for name, item in others.items():
            reason = told(item.reason).replace("|", "\\|")
            lines.append(f"| {name.replace('|', chr(92) + '|')} | {item.word} | {reason} |")
    return "\n".join(lines)


def put_section(page: Path, name: str, text: str, *, write: bool) -> bool:
    """Return whether the page has this text between its marks for ``name``; write it if asked."""
    content = page.read_text(encoding="utf8")
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    changed = pattern.sub(lambda _: f"{start}\n\n{text}\n\n{end}", content)
    if write:
        page.write_text(changed, encoding="utf8")
        return True
    return changed == content


def list_of_programs() -> str:
    """Return all programs by family, as the page shows them."""
    return "\n\n".join(
        f"**{family}**: " + "; ".join(program.name for program in programs)
        for family, programs in FAMILIES.items()
    )


def _row(name: str, verdicts: Iterable[Verdict]) -> str:
    count = Counter(verdict.word for verdict in verdicts)
    return f"| {name} | {count['right']} | {count['refused']} | {count['wrong']} |"
