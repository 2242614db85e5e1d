"""What installations report, on SQLite and on MariaDB."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select

from registration import versions
from registration.db import db
from registration.models import Installation
from registration.reports import InstallationReport, in_use

from .people import NOW, register

pytestmark = pytest.mark.usefixtures("in_context")


def test_each_version_and_distribution_is_remembered_once_with_first_and_last_time_seen() -> None:
    later = NOW + timedelta(days=1)
    register("ann@example.org", installation=InstallationReport("7.0.3 (1)", "docker"))
    register("ann@example.org", installation=InstallationReport("7.0.3 (1)", "docker"), now=later)
    register("ann@example.org", installation=InstallationReport("banana"), now=later)

    seen = db.session.execute(select(Installation).order_by(Installation.id)).scalars().all()
    assert [(one.version, one.distribution, one.first_seen_at, one.last_seen_at) for one in seen] == [
        ("7.0.3 (1)", "docker", NOW, later),
        ("banana", "", later, later),
    ]
    assert [one.version_key is None for one in seen] == [False, True]


def test_of_the_installations_of_one_address_the_hundred_seen_last_are_kept() -> None:
    """Anybody can report any text for any address."""
    for number in range(versions.MOST_INSTALLATIONS + 5):
        report = InstallationReport(f"7.0.{number}")
        register("ann@example.org", installation=report, now=NOW + timedelta(seconds=number))
        register("ann@example.org", installation=InstallationReport("7.0.0"), now=NOW + timedelta(seconds=number))
    register("bob@example.org", installation=InstallationReport("7.0.1"))

    kept = db.session.execute(select(Installation.version).order_by(Installation.id)).scalars().all()
    assert len(kept) == versions.MOST_INSTALLATIONS + 1
    assert set(kept).isdisjoint({"7.0.2", "7.0.3", "7.0.4", "7.0.5"})
    assert {"7.0.0", "7.0.6", "7.0.104"} <= set(kept)


def test_of_installations_seen_at_the_same_time_the_newest_are_kept() -> None:
    for number in range(versions.MOST_INSTALLATIONS + 2):
        register("ann@example.org", installation=InstallationReport(f"7.0.{number}"))

    kept = db.session.execute(select(Installation.version)).scalars().all()
    assert set(kept).isdisjoint({"7.0.0", "7.0.1"})
    assert len(kept) == versions.MOST_INSTALLATIONS


def test_versions_that_as_many_reported_are_in_the_order_of_their_names() -> None:
    for number, (version, distribution) in enumerate([("b", "y"), ("b", "x"), ("a", "z")]):
        register(f"{number}@example.org", installation=InstallationReport(version, distribution))

    with db.engine.connect() as connection:
        found = in_use(connection, limit=2)
    assert [(one.version, one.distribution) for one in found] == [("a", "z"), ("b", "x")]


@pytest.mark.parametrize(("one", "other"), [("jose", "josé"), ("a", "A"), ("a", "a "), ("ss", "ß")])
def test_the_servers_collation_does_not_decide_which_versions_are_the_same(one: str, other: str) -> None:
    for version in (one, other.strip() if other.endswith(" ") else other):
        register("ann@example.org", installation=InstallationReport(version))

    stored = db.session.execute(select(Installation.version)).scalars().all()
    assert sorted(stored) == sorted({one, other.strip()})
