"""Whom a broadcast is for."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select

from registration import audiences, broadcasts, ledger, messages, monitoring
from registration.audiences import Audience
from registration.db import db
from registration.errors import InvalidVersionRangeException
from registration.models import Registration
from registration.versions import parse_range

from . import factories
from .ledgers import NOW, commit, lines

pytestmark = pytest.mark.usefixtures("in_context")


CLINICS = {
    "old": ["7.0.2"],
    "patched": ["7.0.3 (1)"],
    "both": ["7.0.3 (1)", "6.0.0"],
    "unreadable": ["banana"],
    "patched and unreadable": ["7.0.3 (1)", "banana"],
    "silent": [],
}
BELOW = parse_range("<7.0.3.1")
BELOW_OR_UNKNOWN = {"old", "both", "unreadable", "patched and unreadable", "silent"}


def recipients_among_clinics(whom: Audience, seen_days_ago: dict[str, int] | None = None) -> set[str]:
    """Store the clinics, fill a broadcast to an audience, and return who is in its ledger; check what it promised."""
    names = dict(zip(factories.register(len(CLINICS)), CLINICS, strict=True))
    for email, name in names.items():
        for version in CLINICS[name]:
            days = (seen_days_ago or {}).get(version, 0)
            factories.install(email, version, last_seen_at=NOW - timedelta(days=days))
    message = messages.compose("Update now", "There is a hole.")
    broadcast_id = commit(broadcasts.start, message, NOW, whom=whom)
    promised = commit(monitoring.progress, broadcast_id, NOW).recipients
    while commit(ledger.fill, broadcast_id):
        pass
    ids = [delivery.registration_id for delivery in lines(broadcast_id)]
    assert len(ids) == promised
    emails = db.session.execute(select(Registration.email).where(Registration.id.in_(ids))).scalars()
    return {names[email] for email in emails}


def test_a_range_is_for_who_has_one_installation_in_it_or_one_of_which_nothing_is_known() -> None:
    assert recipients_among_clinics(Audience(BELOW)) == BELOW_OR_UNKNOWN


def test_an_audience_is_counted_window_by_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audiences, "COUNTED_AT_ONCE", 2)

    assert recipients_among_clinics(Audience(BELOW)) == BELOW_OR_UNKNOWN
    assert commit(monitoring.forecast, NOW, whom=Audience(BELOW)).recipients == 5


def test_the_unknown_can_be_left_out() -> None:
    assert recipients_among_clinics(Audience(BELOW, include_unknown=False)) == {"old", "both"}


def test_every_interval_of_a_range_counts() -> None:
    whom = Audience(parse_range("!=7.0.2"), include_unknown=False)

    assert recipients_among_clinics(whom) == {"patched", "both", "patched and unreadable"}


def test_an_installation_not_seen_for_long_tells_nothing() -> None:
    days = {"7.0.3 (1)": 400}
    whom = Audience(BELOW, seen_since=NOW - timedelta(days=365))

    assert recipients_among_clinics(whom, days) == set(CLINICS)


def test_an_installation_not_seen_for_long_is_not_one_in_the_range() -> None:
    whom = Audience(BELOW, include_unknown=False, seen_since=NOW - timedelta(days=365))

    assert recipients_among_clinics(whom, {"7.0.2": 400}) == {"both"}


def test_whom_a_hundred_reports_made_forget_an_installation_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else anybody could keep a notice from somebody, by reports of newer versions."""
    monkeypatch.setattr(audiences, "MOST_INSTALLATIONS", 2)
    monkeypatch.setitem(CLINICS, "flooded", ["99.1", "99.2"])

    assert recipients_among_clinics(Audience(BELOW)) == BELOW_OR_UNKNOWN | {"flooded"}


def test_an_audience_is_asked_for_in_words() -> None:
    year = timedelta(days=365)

    assert audiences.asked_for(None, "include", year, NOW) == audiences.EVERYBODY
    assert audiences.asked_for("<7.0.3.1", "include", timedelta(), NOW) == Audience(BELOW)
    assert audiences.asked_for("<7.0.3.1", "exclude", year, NOW) == Audience(
        BELOW, include_unknown=False, seen_since=NOW - year
    )


@pytest.mark.parametrize(("versions", "unknown"), [(None, "exclude"), ("<7.0", "perhaps"), ("<7.0", "")])
def test_an_audience_that_makes_no_sense_is_refused(versions: str | None, unknown: str) -> None:
    with pytest.raises(InvalidVersionRangeException, match="unknown"):
        audiences.asked_for(versions, unknown, timedelta(), NOW)
