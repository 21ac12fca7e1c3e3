"""Every exception and warning of palette_core, in one tree.

Each class also derives from the built-in exception that a caller who does not know us would
catch (``ValueError`` for bad input, ``RuntimeError`` for a wrong moment), so documented
``except`` clauses keep working. Messages say who, what, and what would be right.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_COMPARED = 200  # characters of a name that near ones are looked for
_TOLD = 2_000  # characters of somebody else's message within one of ours
_SHOWN = 20_000  # characters of a message; the exception's args have all of it


class _Shown(Exception):  # noqa: N818 - a part of errors and of warnings
    """Text that may quote names and values of anybody, and is printed to terminals."""

    def __str__(self) -> str:
        return shortened(super().__str__(), _SHOWN)


class PaletteError(_Shown):
    """Base class of all errors raised on purpose by palette_core."""


class PaletteWarning(_Shown, UserWarning):
    """Something was asked for and not done, or will likely surprise; the message says what."""


class ConfigError(PaletteError, ValueError):
    """A configuration file or dictionary is wrong; the message names the place in it."""


class IncompatibleShapeError(PaletteError, ValueError):
    """A spec cannot be applied to a tensor of this shape."""


class PlanError(PaletteError, ValueError):
    """The plan cannot be made as asked."""


class TracingError(PaletteError, RuntimeError):
    """The model could not be run on the example inputs."""


class WeightError(PaletteError, ValueError):
    """A weight holds values that cannot be clustered (NaN, infinity)."""


class StateError(PaletteError, RuntimeError):
    """A call came at the wrong moment of the prepare … finalize life cycle."""


class StateDictError(PaletteError, RuntimeError):
    """A state dictionary does not fit the model as the config prepares it."""


class ClusteringError(PaletteError, RuntimeError):
    """A clustering algorithm failed, or returned something that is not a palette."""


class WorkerError(ClusteringError):
    """A worker process was killed, or work cannot be sent to one; the message says what to try."""


class TrainingError(PaletteError, RuntimeError):
    """A training strategy failed, or made of a weight what cannot stand for it."""


class SensitivityError(PaletteError, ValueError):
    """Sensitivities cannot be measured, or a file of them does not fit the model."""


class AllocationError(PaletteError, ValueError):
    """A budget of bits cannot be kept, or what decides about it is missing."""


class MissingArgumentError(AllocationError):
    """An argument that the chosen metric needs was not given.

    Attributes:
        problem: what is missing, in words.
        argument: the argument's name.
    """

    def __init__(self, problem: str, argument: str) -> None:
        super().__init__(f"{problem} ({argument}=…)")
        self.problem, self.argument = problem, argument


class CalibrationError(PaletteError, RuntimeError):
    """Calibration batches are missing, or the model cannot be run on them."""


class OperationError(PaletteError, RuntimeError):
    """A plug-in that knows an operation failed, or said of a call what cannot be."""


class CheckpointError(PaletteError, ValueError):
    """A packed checkpoint is missing, truncated, of an unknown version, or for another model."""


class WeightFileError(PaletteError, OSError):
    """A file that a finalized weight is mapped from is missing or damaged."""


class BackendError(PaletteError, ValueError):
    """An export backend cannot do what was asked."""


class CommandError(PaletteError, RuntimeError):
    """A command that a plug-in adds to ``palette`` failed."""


class PluginError(PaletteError):
    """Base class of errors about plug-ins."""


class UnknownPluginError(PluginError, ValueError):
    """No installed plug-in registers this name."""


class DuplicatePluginError(PluginError, ValueError):
    """Two distributions register the same name, so selecting it is ambiguous."""


class BlockedPluginError(PluginError, ValueError):
    """This name, or all that a distribution registers, is blocked; the message says by what."""


class PluginOptionsError(PluginError, ValueError):
    """Options given to a plug-in do not validate against its options model."""


class MissingExtraError(PaletteError, ImportError):
    """An optional package is not installed; the message says what to install."""


class ContractError(PaletteError, AssertionError):
    """A plug-in does not keep its contract; the message says which part, and what it did."""


class MissingBackendError(PluginError, ImportError):
    """An export backend is known, but the distribution that provides it is not installed."""


def text_of(error: BaseException) -> str:
    """Return the text of anybody's exception, also where its ``__str__`` fails."""
    try:
        return str(error)
    except BaseException as broken:  # a class of anybody's, which may do anything
        return f"(its text cannot be read: {type(broken).__name__})"


def named_text_of(error: BaseException) -> str:
    """Return ``"ValueError: its text"``, for anybody's exception; long texts are cut."""
    text = text_of(error)
    if len(text) > _TOLD:
        text = f"{text[:_TOLD]}... ({len(text) - _TOLD:,} more characters)"
    return f"{type(error).__name__}: {text}"


def did_you_mean(wrong: object, right: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest of ``right``, or an empty string."""
    if not isinstance(wrong, str) or len(wrong) > _COMPARED:
        return ""
    near = nearest_name(wrong, right, 0.5)
    return "" if near is None else f"; did you mean {shortened(repr(near))}?"


def nearest_name(wrong: str, right: Iterable[str], cutoff: float) -> str | None:
    """Return the name most like a wrong one by `difflib`, or None.

    Names that share less than half of its letters are passed over: a file may have thousands of
    wrong names, and comparing each with all right ones in full would take seconds.
    """
    letters = set(wrong)
    alike = [name for name in right if 2 * len(letters.intersection(name)) >= len(letters)]
    near = difflib.get_close_matches(wrong, alike, n=1, cutoff=cutoff)
    return near[0] if near else None


def printable(text: str) -> str:
    """Return ``text`` with what steers a terminal or hides characters escaped; line ends stay."""
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode()
        for sign in text
    )


def shortened(text: str, length: int = 200) -> str:
    """Return ``text`` printable and of about ``length`` characters, cut in the middle."""
    if len(text) > length:
        half = (length - 3) // 2
        text = f"{text[:half]}...{text[-half:]}"
    return printable(text)
