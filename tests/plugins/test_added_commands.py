"""Commands that plug-ins add to ``palette``: listed, run, refused, and set aside when broken."""

from __future__ import annotations

import pytest

from palette_core.cli import main
from palette_core.cli.app import app
from palette_core.errors import CommandError
from palette_core.plugins.catalog import get_catalog
from palette_core.plugins.checked.commands import run_command
from palette_core.plugins.commands import PALETTES_OWN
from palette_core.plugins.kinds import COMMAND

HOOKS = """
from palette_core.errors import ConfigError
from palette_core.plugins import Command, CommandEntry, hookimpl


class Greet(Command):
    def run(self, arguments):
        if "--bad" in arguments:
            raise ConfigError("--bad is bad")
        if "--worse" in arguments:
            raise LookupError("nothing there")
        if "--number" in arguments:
            return "many"
        print("hello", *arguments)
        return 3 if "--three" in arguments else None


@hookimpl
def palette_core_commands():
    return [
        CommandEntry(
            name=name, summary="greet somebody", interface=1, factory=lambda options: Greet()
        )
        for name in ("greet", "plan")
    ]
"""


@pytest.fixture
def palette(site, monkeypatch, capsys):
    """Run the command line with the plug-in installed; return exit code and what is printed."""
    site.install("fake-greet", HOOKS)
    monkeypatch.setenv("PALETTE_CORE_BLOCK", "")
    get_catalog.cache_clear()

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", ["palette", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return stop.value.code or 0, printed.out, printed.err

    return run


def test_help_lists_it_with_its_summary(palette) -> None:
    code, out, _ = palette("--help")
    assert code == 0
    (line,) = [line for line in out.splitlines() if "greet" in line]
    assert "greet somebody" in line


@pytest.mark.parametrize("given", [(), ("you",), ("--help",), ("--json", "-x", "--", "--version")])
def test_it_gets_every_argument(palette, given) -> None:
    code, out, _ = palette("greet", *given)
    assert (code, out) == (0, " ".join(("hello", *given)) + "\n")


def test_its_exit_code_is_that_of_palette(palette) -> None:
    assert palette("greet", "--three")[0] == 3


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("--bad", "palette: error: --bad is bad"),
        ("--worse", "command 'greet' (fake-greet 1.0) failed: LookupError: nothing there"),
        ("--number", "command 'greet' (fake-greet 1.0): returned 'many', expected an exit code"),
    ],
)
def test_what_goes_wrong_is_one_line(palette, given, text) -> None:
    code, _, err = palette("greet", given)
    assert code == 2
    assert text in err
    assert len(err.splitlines()) == 1


def test_a_name_of_palettes_own_is_set_aside_alone(palette) -> None:
    (refused,) = [q for q in get_catalog().quarantined if q.distribution.name == "fake-greet"]
    assert refused.entry_point == "command:plan"
    assert "claims the name 'plan'" in refused.error
    assert "Usage" in palette("plan", "--help")[1]
    assert {name for name in PALETTES_OWN} == {  # noqa: C416 - said twice on purpose
        command.name or command.callback.__name__ for command in app.registered_commands
    }


def test_two_claims_on_a_command_matter_only_when_it_is_called(palette, site) -> None:
    site.install("fake-greet-2", HOOKS)
    get_catalog.cache_clear()
    code, out, _ = palette("--help")
    assert code == 0
    assert "greet" not in out
    code, _, err = palette("greet")
    assert code == 2
    assert "registered by fake-greet 1.0 and fake-greet-2 1.0" in err


def test_an_unknown_command_is_unknown_still(palette) -> None:
    code, _, err = palette("gret")
    assert code == 2
    assert "No such command 'gret'" in err


def test_a_blocked_command_says_so(palette) -> None:
    code, _, err = palette("--block", "command:greet", "greet")
    assert code == 2
    assert "command 'greet' is blocked" in err


def test_a_failure_has_the_class_of_its_kind(palette) -> None:
    item = get_catalog()[COMMAND].find("greet")
    with pytest.raises(CommandError, match="LookupError"):
        run_command(item, ["--worse"])
