"""Imports point one way, from the application to the database, and only the edge knows the web."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from registration import ROOT

LEVELS = {
    "registration.errors": 0,
    "registration.markdown": 0,
    "registration.markup": 0,
    "registration.networks": 0,
    "registration.spreadsheets": 0,
    "registration.addresses": 1,
    "registration.messages": 1,
    "registration.tokens": 1,
    "registration.versions": 1,
    "registration.domains": 2,
    "registration.db": 1,
    "registration.clock": 2,
    "registration.outage": 2,
    "registration.limits": 1,
    "registration.group_commit": 1,
    "registration.mailers": 2,
    "registration.models": 2,
    "registration.windows": 3,
    "registration.audiences": 4,
    "registration.ledger": 5,
    "registration.pacing": 3,
    "registration.bulk_turns": 4,
    "registration.pins": 3,
    "registration.confirmations": 3,
    "registration.counting": 3,
    "registration.erasures": 3,
    "registration.reports": 3,
    "registration.dossiers": 3,
    "registration.registrations": 6,
    "registration.broadcasts": 6,
    "registration.monitoring": 6,
    "registration.events": 6,
    "registration.feedback": 7,
    "registration.trials": 6,
    "registration.circuit_breaker": 7,
    "registration.figures": 7,
    "registration.terminal": 7,
    "registration.consent": 8,
    "registration.transfers": 9,
    "registration.flow": 6,
    "registration.trouble": 6,
    "registration.claims": 7,
    "registration.housekeeping": 8,
    "registration.services": 7,
    "registration.confirmation_sender": 7,
    "registration.sender": 9,
    "registration.event_queue": 8,
    "registration.cli": 8,
    "registration.registrations_cli": 10,
    "registration.tasks": 10,
    "registration.event_tasks": 11,
    "registration.web": 9,
    "config": 10,
    "logger": 10,
    "registration": 12,
    "application": 13,
}
"""A module imports only from lower levels, or inside its own package. Settings and logging are set up at the top."""
LEAVES = {
    f"registration.{name}" for name in ("errors", "addresses", "markdown", "markup", "messages", "versions", "networks")
}
LEAVES |= {f"registration.{name}" for name in ("mailers", "spreadsheets", "tokens")}
EDGE = {"registration", "registration.web", "registration.cli", "registration.db", "logger", "application"}
EDGE |= {"registration.registrations_cli", "registration.services"}
WEB = {"flask", "flask_babel", "flask_sqlalchemy", "flask_migrate", "werkzeug"}
CALLS_AWS = {"registration.mailers.ses", "registration.event_queue"}
AWS = {"boto3", "botocore", "mypy_boto3_sesv2"}

FILES = [ROOT / "application.py", ROOT / "config.py", *(ROOT / "logger").rglob("*.py")]
FILES += [file for file in (ROOT / "registration").rglob("*.py") if "migrations" not in file.parts]


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def place_of(module: str) -> str | None:
    """Return the longest name in LEVELS that a module is or is inside of; None for somebody else's module."""
    names = [name for name in LEVELS if name == module or module.startswith(f"{name}.")]
    return max(names, key=len, default=None)


def imports(source: str, package: str) -> Iterator[str]:
    """Yield the full name of everything that a source imports, wherever in it; `package` is where dots begin."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{origin}.{name.name}" for name in node.names)


def imports_of(file: Path) -> set[str]:
    module = module_of(file)
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    return set(imports(file.read_text(), package))


def upward(module: str, imported: set[str]) -> set[str]:
    """Return the imports of a module that do not point downwards."""
    here = place_of(module)
    assert here is not None
    places = {name: place_of(name) for name in imported}
    return {
        name for name, place in places.items() if place is not None and place != here and LEVELS[place] >= LEVELS[here]
    }


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_module_has_a_level_and_imports_from_lower_ones_only(file: Path) -> None:
    module = module_of(file)
    in_a_package = module.startswith(("registration.web.", "registration.mailers."))

    assert module in LEVELS or in_a_package, f"give {module} a level"
    assert not upward(module, imports_of(file))


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_only_the_edge_knows_the_web_and_the_leaves_know_no_database(file: Path) -> None:
    place = place_of(module_of(file))
    foreign = {name.partition(".")[0] for name in imports_of(file)}

    assert place in EDGE or not foreign & WEB
    assert place not in LEAVES or not foreign & {"sqlalchemy", "alembic", "pymysql"}
    assert module_of(file) in CALLS_AWS or not foreign & AWS


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_the_environment_is_read_by_the_settings_only(file: Path) -> None:
    assert module_of(file) == "config" or not {"os", "os.environ", "os.getenv"} & imports_of(file)


def test_every_level_has_its_module() -> None:
    assert {place_of(module_of(file)) for file in FILES} == LEVELS.keys()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("registration.broadcasts", "from . import sender"),
        ("registration.broadcasts", "from .sender import Sender"),
        ("registration.broadcasts", "from .registrations import register"),
        ("registration.sender", "import registration.web.api"),
        ("registration.sender", "from .web import api"),
        ("registration.web.api", "from ..sender import Sender"),
        ("registration.web.api", "def view():\n    from registration import create_sender"),
        ("registration.messages", "from .models import Broadcast"),
        ("registration.mailers.ses", "from ..broadcasts import Batch"),
        ("registration.pacing", "if TYPE_CHECKING:\n    import config"),
    ],
)
def test_an_upward_import_is_found_wherever_it_is(module: str, source: str) -> None:
    assert upward(module, set(imports(source, module.rpartition(".")[0])))


def test_a_downward_import_is_fine() -> None:
    source = "from ..errors import RegistrationError\nfrom .fields import Fields\nimport flask"

    assert not upward("registration.web.access", set(imports(source, "registration.web")))
