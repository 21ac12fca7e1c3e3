"""Regular expressions for names: many of them asked about many names, in bounded time.

What a user writes means what Python's ``re.fullmatch`` makes of it. Expressions that are plain
names are looked up in tables; the others are joined and given to an engine that can be stopped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import regex

from palette_core.errors import ConfigError, shortened

_LENGTH = 20_000  # characters of one expression
_DEPTH = 50  # of its groups
_REPEATS = 10_000  # the product of its counts, which engines unroll
_SECONDS = 0.5  # for one name; matching takes microseconds
_JOINED = 64  # expressions in one search

_PLAIN = re.compile(r"(?:[^\\.^$*+?{}\[\]|()]|\.|\\[^0-9A-Za-z])*", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_PIECE = re.compile(r"\\(?P<escaped>.)|(?P<any>\.)|.", re.DOTALL)
_COUNT = re.compile(r"\{(\d*)(?:,(\d*))?\}")
# What does not mean the same inside of a larger expression.
_ALONE = re.compile(r"\\[1-9]|\(\?(?![:=!>]|<[=!])")


def check_pattern(key: object) -> str:
    """Return ``key`` when it is a regular expression.

    Raises:
        ValueError: it is not, or is larger than a name can need; the message has the reason.
    """
    if not isinstance(key, str):
        raise ValueError(f"names are strings, got {shortened(repr(key))}")
    if len(key) > _LENGTH:
        raise ValueError(
            f"name pattern {shortened(repr(key))} has {len(key):,} characters, more than "
            f"{_LENGTH:,}; write several entries"
        )
    if _PLAIN.fullmatch(key):
        return key
    reason = _excess(key) or _syntax_error(key)
    if reason:
        hint = "; write '.*' for every name" if key.startswith("*") else ""
        raise ValueError(
            f"name pattern {shortened(repr(key))} is not a valid regular expression: {reason}{hint}"
        )
    return key


def _excess(pattern: str) -> str:
    """Return what makes an expression too large to compile, or an empty string."""
    depth = deepest = 0
    product = 1
    for kind, text in _tokens(pattern):
        depth += {"(": 1, ")": -1}.get(text, 0) if kind == "sign" else 0
        deepest = max(deepest, depth)
        if kind == "count":
            digits = [part[:9] for part in re.findall(r"\d+", text)]
            product *= max(1, *(int(part) for part in digits))
    if deepest > _DEPTH:
        return f"groups are nested {deepest} deep, more than {_DEPTH}"
    if product > _REPEATS:
        return f"its counts multiply to more than {_REPEATS:,}"
    return ""


def _syntax_error(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    return ""


def _tokens(pattern: str) -> Iterator[tuple[str, str]]:
    r"""Split an expression into escapes (``\N{…}`` whole), sets, counts and single signs."""
    at = 0
    while at < len(pattern):
        kind, end = _token(pattern, at)
        yield kind, pattern[at:end]
        at = end


def _token(pattern: str, at: int) -> tuple[str, int]:
    if pattern[at] == "\\":
        end = pattern.find("}", at) if pattern.startswith("\\N{", at) else at + 1
        return "escape", end + 1
    if pattern[at] == "[":
        end = at + 1 + pattern.startswith("[^", at)
        end += pattern.startswith("]", end)
        while end < len(pattern) and pattern[end] != "]":
            end += 2 if pattern[end] == "\\" else 1
        return "set", end + 1
    count = _COUNT.match(pattern, at)
    if count is not None and count.group() not in ("{}", "{,}"):
        return "count", count.end()
    return "sign", at + 1


def _translated(pattern: str) -> str:
    """Return for the `regex` library what ``pattern`` means to ``re``.

    The library reads more: fuzzy matches in braces that are no counts, named classes in sets.
    """
    text = ""
    for kind, token in _tokens(pattern):
        if kind == "set":
            text += "[" + re.sub(r"\\.|\[", _escaped_bracket, token[1:], flags=re.DOTALL)
        elif kind == "sign" and token == "{":
            text += "\\{"
        else:
            text += token
    return text


def _escaped_bracket(match: re.Match[str]) -> str:
    return "\\[" if match.group() == "[" else match.group()


class NamePatterns:
    """Several expressions, of which the last one that matches a name counts.

    Args:
        patterns: regular expressions, each checked by `check_pattern`.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._plain: dict[int, dict[tuple[int, ...], dict[str, int]]] = {}
        others: list[tuple[int, str]] = []
        for order, pattern in enumerate(patterns):
            plain = _plain_name(pattern)
            if plain is None:
                others.append((order, pattern))
            else:
                name, dots = plain
                self._plain.setdefault(len(name), {}).setdefault(dots, {})[name] = order
        self._searches = list(_searches(others[::-1]))
        self._found: dict[str, int | None] = {}

    def last(self, name: str) -> int | None:
        """Return the position of the last expression that matches all of ``name``, or None.

        Raises:
            ConfigError: an expression takes too long.
        """
        if name not in self._found:
            self._found[name] = self._find(name)
        return self._found[name]

    def _find(self, name: str) -> int | None:
        best = max(
            (
                table.get(_blanked(name, dots), -1)
                for dots, table in self._plain.get(len(name), {}).items()
            ),
            default=-1,
        )
        for search in self._searches:
            if search.latest <= best:
                break
            found = search.last(name)
            if found is not None:
                best = max(best, found)
                break
        return best if best >= 0 else None


class NameIndex:
    """Names that expressions are asked about one by one."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(dict.fromkeys(names))
        self._tables: dict[tuple[int, tuple[int, ...]], dict[str, list[str]]] = {}

    def matching(self, pattern: str) -> tuple[str, ...]:
        """Return the names that ``pattern`` matches whole, in their order.

        Raises:
            ConfigError: the expression takes too long.
        """
        plain = _plain_name(pattern)
        if plain is not None:
            name, dots = plain
            return tuple(self._table(len(name), dots).get(name, ()))
        search = _Search([(0, pattern)])
        return tuple(name for name in self._names if search.last(name) is not None)

    def _table(self, length: int, dots: tuple[int, ...]) -> dict[str, list[str]]:
        if (length, dots) not in self._tables:
            table: dict[str, list[str]] = {}
            for name in self._names:
                if len(name) == length:
                    table.setdefault(_blanked(name, dots), []).append(name)
            self._tables[length, dots] = table
        return self._tables[length, dots]


def _plain_name(pattern: str) -> tuple[str, tuple[int, ...]] | None:
    """Return the name that an expression spells, and where it has dots, which match any sign."""
    if not _PLAIN.fullmatch(pattern):
        return None
    if "\\" not in pattern:
        return pattern, tuple(at for at, sign in enumerate(pattern) if sign == ".")
    if "." not in pattern.replace(r"\\", "").replace(r"\.", ""):
        return _ESCAPE.sub(r"\1", pattern), ()
    pieces = list(_PIECE.finditer(pattern))
    name = "".join(piece["escaped"] or piece.group() for piece in pieces)
    return name, tuple(at for at, piece in enumerate(pieces) if piece["any"])


def _blanked(name: str, dots: tuple[int, ...]) -> str:
    """Return ``name`` with dots at those places, but where a line ends, which no dot matches."""
    others = [at for at in dots if name[at] != "."]
    if not others:
        return name
    signs = list(name)
    for at in others:
        if signs[at] != "\n":
            signs[at] = "."
    return "".join(signs)


def _searches(latest_first: list[tuple[int, str]]) -> Iterator[_Search]:
    together: list[tuple[int, str]] = []
    for order, pattern in latest_first:
        alone = _ALONE.search(pattern) is not None
        if together and (alone or len(together) == _JOINED):
            yield _Search(together)
            together = []
        if alone:
            yield _Search([(order, pattern)])
        else:
            together.append((order, pattern))
    if together:
        yield _Search(together)


class _Search:
    """Expressions tried one after the other, compiled as one where there are several."""

    def __init__(self, patterns: list[tuple[int, str]]) -> None:
        self.latest = patterns[0][0]
        self._patterns = patterns
        self._order_of: dict[int | None, int] = {}
        if len(patterns) == 1:
            self._compiled = _compiled(patterns[0][1])
            return
        groups, text = 0, []
        for order, pattern in patterns:
            # The empty group is the last one to close, so it tells which alternative it was.
            text.append(f"(?:{_translated(pattern)})()")
            groups += _groups(pattern) + 1
            self._order_of[groups] = order
        self._compiled = regex.compile("|".join(text), cache_pattern=False)

    def last(self, name: str) -> int | None:
        try:
            found = self._compiled.fullmatch(name, timeout=_SECONDS)
        except TimeoutError:
            return self._one_by_one(name)
        if found is None:
            return None
        return self._order_of[found.lastindex] if self._order_of else self.latest

    def _one_by_one(self, name: str) -> int | None:
        for order, pattern in self._patterns:
            try:
                if _compiled(pattern).fullmatch(name, timeout=_SECONDS):
                    return order
            except TimeoutError:
                raise ConfigError(
                    f"name pattern {shortened(repr(pattern))} takes too long on "
                    f"{shortened(repr(name))}: what it repeats can match the same text in too "
                    "many ways; repeat nothing that is itself repeated"
                ) from None
        return None


def _groups(pattern: str) -> int:
    """Return how many groups an expression without named ones counts."""
    tokens = [text for kind, text in _tokens(pattern)]
    return sum(text == "(" and after != "?" for text, after in pairwise([*tokens, ""]))


def _compiled(pattern: str) -> regex.Pattern[str]:
    return regex.compile(_translated(pattern), cache_pattern=False)
