"""Many expressions for many names: what `re` makes of them, in bounded time."""

import re
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palette_core.config import KMeansPalettizerConfig
from palette_core.config.patterns import NameIndex, NamePatterns, check_pattern
from palette_core.errors import ConfigError

# Pieces that engines read differently stand among them: fuzzy braces, sets in sets, flags.
PIECES = [
    *("a", "b", ".", r"\.", "*", "+", "?", "|", "^", "$", "(", ")", "(?:", "-", "{", "}", "]"),
    *(
        "{2}",
        "{,2}",
        "{1,}",
        "{e}",
        "{a}",
        "{e<=1}",
        "{a,b}",
        "{}",
        "[ab]",
        "[^a]",
        "[[:a]",
        "[]a]",
    ),
    *("[a-]", "[a&&b]", "[a--b]", r"[\]a]", r"\d", r"\w", r"\1", r"\Z", r"\b", r"\-", r"\n"),
    *("(?=a)", "(?!b)", "(?i)", "++", "(?>", r"\x61", "(?P<x>", "(?P=x)", "(?#c)"),
]
NAMES = ["", "a", "b", "ab", "ba", "aab", "a.b", "a{e}", "a{", "a\n", "1", "a-", "]", "a}", "A"]
patterns = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join)


def accepted(pattern: str) -> bool:
    try:
        check_pattern(pattern)
    except ValueError:
        return False
    return True


def by_re(pattern: str, name: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of sets in sets
        return re.fullmatch(pattern, name) is not None


@pytest.mark.filterwarnings("ignore::FutureWarning")
@settings(deadline=None, max_examples=300)
@given(st.lists(patterns.filter(accepted), min_size=1, max_size=80))
def test_the_last_expression_that_re_matches_counts(chosen):
    many = NamePatterns(chosen)
    for name in NAMES:
        wanted = [order for order, pattern in enumerate(chosen) if by_re(pattern, name)]
        assert many.last(name) == (wanted[-1] if wanted else None), name
    index = NameIndex(NAMES)
    for pattern in chosen:
        assert list(index.matching(pattern)) == [name for name in NAMES if by_re(pattern, name)]


@given(st.text(max_size=20), st.lists(st.text(max_size=6)))
def test_escaped_names_match_themselves_only(name, others):
    index = NameIndex([name, *others])
    assert index.matching(re.escape(name)) == (name,)


def test_a_dot_stands_for_any_sign():
    names = ["layers.0", "layers_0", "layers00", "layers.00"]
    assert NameIndex(names).matching("layers.0") == ("layers.0", "layers_0", "layers00")
    assert NameIndex(names).matching(r"layers\.0") == ("layers.0",)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [r"(a|aa)+\d", r"(a|aa|b)+[.,]", r"(?P<x>a|aa)+[.,]"])
def test_an_expression_that_backtracks_without_end_is_stopped_and_named(pattern):
    many = NamePatterns(["a.b", "b+c", pattern, "x", ".*e"])
    started = time.process_time()
    with pytest.raises(ConfigError, match=re.escape(repr(pattern))) as caught:
        many.last("a" * 60)
    assert time.process_time() - started < 5  # of the years that it would take
    assert repr("a" * 60) in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("a{99999999999}", "multiply to more than"),
        ("(?:(?:a{1000}){1000}){1000}", "multiply to more than"),
        ("a{" + "9" * 5000 + "}", "multiply to more than"),
        ("(" * 5000 + ")" * 5000, "nested 5000 deep"),
        ("a|" * 20_000, "write several entries"),
        ("*", "write '.*' for every name"),
        ("(", "not a valid regular expression"),
    ],
)
def test_an_expression_that_is_none_or_too_large_is_refused(pattern, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        KMeansPalettizerConfig(module_name_configs={pattern: None})
    with pytest.raises(ConfigError, match=re.escape(reason)) as caught:
        KMeansPalettizerConfig.from_dict(
            {"kmeans_palettization_config": {"module_name_configs": {pattern: None}}}
        )
    assert len(str(caught.value)) < 2000
