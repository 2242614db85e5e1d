"""requirements.txt names all that is installed, in one version, and says why."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires, version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from registration import ROOT

LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[0-9][0-9A-Za-z.]*)(?: +# (?P<reason>\S.*))?")
OPTIONAL = {"celery"}
"""What is imported only where requirements-celery.txt is installed."""
OURS = {"application", "config", "logger", "registration"}


def read(paragraph: str) -> dict[str, re.Match[str]]:
    """Return the matched lines of a paragraph by the names of their packages."""
    lines = [line for line in paragraph.splitlines() if line and not line.startswith("#")]
    matches = [LINE.fullmatch(line) for line in lines]
    assert None not in matches, lines[matches.index(None)]
    return {canonicalize_name(match["name"]): match for match in matches if match}


DIRECT, PULLED_IN = [read(paragraph) for paragraph in (ROOT / "requirements.txt").read_text().split("\n\n")]
PINNED = DIRECT | PULLED_IN


def needs(name: str, *, anywhere: bool) -> Iterator[str]:
    """Yield what a package needs here, or on any platform and Python; never what only an extra of it needs."""
    for line in requires(name) or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}) or (anywhere and "extra" not in str(marker)):
            yield canonicalize_name(requirement.name)


def closure(names: set[str], *, anywhere: bool) -> set[str]:
    """Return packages with all that they need, and what that needs."""
    found: set[str] = set()
    while new := names - found:
        found |= new
        names = names | {need for name in new & PINNED.keys() for need in needs(name, anywhere=anywhere)}
    return found


def test_everything_that_the_direct_packages_pull_in_is_pinned() -> None:
    assert closure(set(DIRECT), anywhere=False) - PINNED.keys() == set()


def test_nothing_is_pinned_that_nobody_needs() -> None:
    assert PINNED.keys() - closure(set(DIRECT), anywhere=True) == set()
    assert not DIRECT.keys() & PULLED_IN.keys()


@pytest.mark.parametrize("name", DIRECT)
def test_a_direct_package_has_a_reason(name: str) -> None:
    assert DIRECT[name]["reason"]


@pytest.mark.parametrize("name", PINNED)
def test_what_is_tested_is_what_is_pinned(name: str) -> None:
    assert version(name) == PINNED[name]["version"]


def test_everything_that_is_imported_is_pinned() -> None:
    files = [ROOT / "application.py", ROOT / "config.py", *(ROOT / "logger").rglob("*.py")]
    files += (ROOT / "registration").rglob("*.py")
    imported = {name.partition(".")[0] for file in files for name in absolute_imports(file.read_text())}
    foreign = imported - OURS - sys.stdlib_module_names - {"mypy_boto3_sesv2"} - OPTIONAL
    providers = packages_distributions()

    assert {canonicalize_name(providers[name][0]) for name in foreign} <= PINNED.keys()
    assert len(foreign) >= 8


def absolute_imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
