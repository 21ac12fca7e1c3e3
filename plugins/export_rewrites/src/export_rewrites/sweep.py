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
    with torch.no_grad():
        wanted = [torch.as_tensor(leaf) for leaf in tree_leaves(model(*program.inputs))]
    try:
        got = run(model, program.inputs)
    except BackendError as error:
        return Verdict("refused", " ".join(str(error).split()))
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
