"""What the distributions promise about versions is what `tox -e oldest` runs."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = [
    ROOT / "pyproject.toml",
    *sorted(ROOT.glob("plugins/*/pyproject.toml")),
    *sorted(ROOT.glob("examples/plugins/*/pyproject.toml")),
]


def floors(pyproject: Path) -> dict[str, str]:
    """Requirement to its lower bound, of the dependencies and of the extras."""
    project = tomllib.loads(pyproject.read_text("utf8"))["project"]
    extras = project.get("optional-dependencies", {}).values()
    requirements = [*project["dependencies"], *(text for extra in extras for text in extra)]
    matches = (re.match(r"([\w.-]+)>=([\w.]+)", text) for text in requirements)
    return {found[1]: found[2] for found in matches if found}


def constraints(name: str) -> dict[str, str]:
    text = (ROOT / name).read_text("utf8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def padded(version: str) -> tuple[int, ...]:
    numbers = [int(part) for part in version.split(".")]
    return (*numbers, *[0] * (3 - len(numbers)))


def test_every_lower_bound_of_the_core_is_run() -> None:
    run = constraints("constraints-oldest.txt")
    for name, floor in floors(ROOT / "pyproject.toml").items():
        assert name in run, f"{name} is not in constraints-oldest.txt"
        assert padded(run[name]) == padded(floor), name


@pytest.mark.parametrize("pyproject", DISTRIBUTIONS, ids=lambda path: path.parent.name)
def test_plugins_promise_no_older_version_than_the_core(pyproject: Path) -> None:
    core = floors(ROOT / "pyproject.toml")
    for name, floor in floors(pyproject).items():
        if name in core:
            assert padded(floor) >= padded(core[name]), name


@pytest.mark.parametrize("pyproject", DISTRIBUTIONS, ids=lambda path: path.parent.name)
def test_source_distributions_hold_their_own_files_alone(pyproject: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=pyproject.parent, check=True, capture_output=True)
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as file:
        tops = {name.split("/")[1] for name in file.getnames()}
    assert {"src", "README.md", "LICENSE", "pyproject.toml", "PKG-INFO"} <= tops
    expected = {"tests", "docs", "CHANGELOG.md", "constraints.txt", ".gitignore"}
    assert tops - expected == {"src", "README.md", "LICENSE", "pyproject.toml", "PKG-INFO"}


def test_an_extra_takes_all_the_others() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
    extras = project["optional-dependencies"]
    (everything,) = extras.pop("all")
    assert everything == f"palette-core[{','.join(sorted(extras))}]"


def test_one_torch_everywhere() -> None:
    """Another one than the local build would fetch gigabytes of CUDA packages."""
    versions = {constraints(path.name)["torch"] for path in ROOT.glob("constraints*.txt")}
    assert versions == {constraints("constraints.txt")["torch"]}


FINDINGS = sorted((ROOT / "findings").iterdir())


@pytest.mark.parametrize("script", FINDINGS, ids=lambda path: path.name)
def test_a_finding_is_short_pinned_and_without_this_package(script: Path) -> None:
    text = script.read_text("utf8")
    assert script.suffix == ".sh"
    assert len(text.splitlines()) <= 80
    assert "palette" not in text
    (install,) = re.findall(r"install --quiet (.+)", text)
    pinned = constraints("constraints.txt")
    for requirement in install.split():
        name, _, version = requirement.partition("==")
        assert version, f"{requirement} is not pinned"
        assert name != "torch" or version == pinned["torch"]
    assert "# Seen on " in text
    assert "assert " in text


# --- what indexes of packages show ---------------------------------------------------------------


@pytest.mark.parametrize("pyproject", DISTRIBUTIONS, ids=lambda path: path.parent.name)
def test_what_is_promised_was_run(pyproject: Path) -> None:
    """Every version of constraints.txt lies in the range of whoever depends on it."""
    project = tomllib.loads(pyproject.read_text("utf8"))["project"]
    own, run = {"palette-core", "palette-core-export-rewrites"}, constraints("constraints.txt")
    run = {canonicalize_name(name): version for name, version in run.items()}
    for text in project["dependencies"]:
        needed = Requirement(text)
        name = canonicalize_name(needed.name)
        assert needed.specifier, f"{text} has no range"
        version = "0.1.0" if name in own else run[name]
        assert needed.specifier.contains(version, prereleases=True), text
    assert Requirement(f"python{project['requires-python']}").specifier.contains("3.11")


@pytest.mark.parametrize("pyproject", DISTRIBUTIONS, ids=lambda path: path.parent.name)
def test_metadata_says_what_and_for_whom(pyproject: Path) -> None:
    project = tomllib.loads(pyproject.read_text("utf8"))["project"]
    assert project["license"] == "Apache-2.0"
    assert project["readme"] == "README.md"
    assert 20 < len(project["description"]) < 100
    if "examples" in pyproject.parts:
        return  # which are for reading
    tested = {"Operating System :: POSIX :: Linux", "Programming Language :: Python :: 3.11"}
    assert tested <= set(project["classifiers"])
    others = [
        each
        for each in project["classifiers"]
        if each.startswith(("Operating System", "Programming Language"))
    ]
    assert set(others) == tested  # what no test has run on is not claimed
    assert len(project["keywords"]) >= 3


@pytest.mark.parametrize("pyproject", DISTRIBUTIONS, ids=lambda path: path.parent.name)
def test_links_of_a_readme_lead_somewhere(pyproject: Path) -> None:
    readme = pyproject.parent / "README.md"
    for link in re.findall(r"\]\(([^)\s]+)\)", readme.read_text("utf8")):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = readme.parent / path if path else readme
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            titles = re.findall(r"^#+ (.+)$", target.read_text("utf8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\s-]", "", each.lower()).strip() for each in titles]
            assert anchor in [re.sub(r"[-\s]+", "-", each) for each in slugs], link
