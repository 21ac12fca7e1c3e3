"""A few of the random YAML files of `run.py`, and those that once broke the promise."""

import io

import pytest
from yaml_attack import _unfit, attack

from palette_core import KMeansPalettizerConfig
from palette_core.errors import ConfigError

ROOT = "kmeans_palettization_config"


@pytest.mark.slow
def test_random_files_load_or_are_refused_in_time_by_an_error_of_ours():
    outcome = attack(150)
    assert not outcome.broken, "\n".join(outcome.broken)
    assert outcome.counts["refused"] > 20
    assert outcome.counts["planned"] > 0  # else nothing was tried that is nearly right


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        KMeansPalettizerConfig.from_yaml(io.StringIO(text))
    message = str(caught.value)
    assert not _unfit(message)
    return message


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("2024-02-30", "'2024-02-30' is not a valid timestamp"),
        ("!!float abc", "'abc' is not a valid float"),
        ("!!bool abc", "'abc' is not a valid bool"),
        ("!!timestamp abc", "'abc' is not a valid timestamp"),
        ("!!int ''", "'' is not a valid int"),
        ("9" * 4300, "is not a valid number of at most 100 digits"),
        ("1" + ":1" * 3000, "is not a valid number of at most 100 digits"),
        (str(2**64), "less than 18446744073709551616"),
        ("[" * 5000, "nested too deeply to be a config, more than 100 levels"),
        ("{a: " * 5000, "nested too deeply to be a config, more than 100 levels"),
    ],
)
def test_values_that_no_config_has(value, reason):
    message = refusal(f"{ROOT}:\n  seed: {value}")
    assert reason in message
    assert message.startswith("<stream>")


def test_aliases_of_aliases_are_counted_before_anything_is_made_of_them():
    lines = ["a0: &a0 [1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    options = "{" + ", ".join(lines) + "}"
    text = f"{ROOT}: {{global_config: {{op_state_spec: {{w: {{algorithm_options: {options}}}}}}}}}"
    assert "aliases make" in refusal(text)


def test_thousands_of_problems_make_a_short_message():
    text = f"{ROOT}: {{" + ", ".join(f"key{number}: 1" for number in range(3000)) + "}"
    lines = refusal(text).splitlines()
    assert len(lines) == 21
    assert lines[-1].endswith("2,980 more problems")


def test_long_names_are_shortened_and_escapes_escaped():
    assert len(refusal(f"{ROOT}: {{? {'k' * 100_000} : 1}}")) < 1000
    message = refusal(f'{ROOT}: {{"a\\e[31mb\\u202e": 1}}')
    assert "\\x1b" in message
    assert "\\u202e" in message
