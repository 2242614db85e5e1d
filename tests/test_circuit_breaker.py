"""The circuit breaker: when it pauses a broadcast, when not, and that a person's resumption holds."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from registration import broadcasts, circuit_breaker, feedback
from registration.db import db
from registration.models import Broadcast, BroadcastStatus, Delivery, Feedback

from . import ledgers, ses_events
from .ledgers import NOW, commit, filled

pytestmark = pytest.mark.usefixtures("in_context")

LATER = NOW + timedelta(hours=1)


def sending(accepted: int, *, queued: int = 1, **told: int) -> int:
    """Return a broadcast that is under way, with so many messages of each feedback."""
    broadcast_id = filled(accepted + queued)
    accept(broadcast_id, accepted)
    for name, number in told.items():
        tell(broadcast_id, Feedback(name), number)
    return broadcast_id


def accept(broadcast_id: int, number: int, *, at: timedelta = timedelta()) -> None:
    change(broadcast_id, number, Delivery.status == "queued", status="sent", settled_at=NOW + at)


def tell(broadcast_id: int, feedback: Feedback, number: int, *, since: timedelta = timedelta()) -> None:
    those = (Delivery.status == "sent") & Delivery.feedback.is_(None) & (Delivery.settled_at >= NOW + since)
    change(broadcast_id, number, those, feedback=feedback, feedback_at=NOW)


def change(broadcast_id: int, number: int, those: object, **values: object) -> None:
    chosen = select(Delivery.id).where(Delivery.broadcast_id == broadcast_id, those).limit(number)  # type: ignore
    ids = db.session.execute(chosen).scalars().all()
    assert len(ids) == number
    db.session.execute(update(Delivery).where(Delivery.id.in_(ids)).values(**values))
    db.session.commit()


def check(broadcast_id: int, sample: int = 500) -> bool:
    return commit(circuit_breaker.check, broadcast_id, sample=sample, now=NOW)


def row(broadcast_id: int) -> Broadcast:
    db.session.rollback()
    db.session.expire_all()
    return db.session.get_one(Broadcast, broadcast_id)


def test_hard_bounces_of_four_in_a_hundred_pause_a_broadcast_until_a_person_resumes_it() -> None:
    broadcast_id = sending(500, hard_bounce=20)

    assert check(broadcast_id)

    paused = row(broadcast_id)
    assert (paused.status, paused.resume_at, paused.circuit_broken_at) == (BroadcastStatus.PAUSED, None, NOW)
    assert paused.reason == (
        "20 of 500 messages (4.00%) bounced because the address does not exist; Amazon SES reviews the account at 5%. "
        "Find out why with the operator, then resume it, or cancel it."
    )
    commit(broadcasts.find_work, LATER)
    assert row(broadcast_id).status is BroadcastStatus.PAUSED


@pytest.mark.parametrize(
    ("accepted", "complained", "told"),
    [(500, 1, "1 of 500 messages (0.20%)"), (1250, 1, "1 of 1,250"), (2500, 2, "2 of 2,500 messages (0.08%)")],
)
def test_complaints_of_eight_in_ten_thousand_pause_a_broadcast(accepted: int, complained: int, told: str) -> None:
    broadcast_id = sending(accepted, complained=complained - 1)
    assert not check(broadcast_id)

    tell(broadcast_id, Feedback.COMPLAINED, 1)

    assert check(broadcast_id)
    assert (row(broadcast_id).reason or "").startswith(told)
    assert "were reported as spam" in (row(broadcast_id).reason or "")


@pytest.mark.parametrize(
    ("accepted", "told"),
    [
        (500, {"hard_bounce": 19}),
        (499, {"hard_bounce": 400}),
        (500, {"soft_bounce": 400}),
        (500, {"delayed": 100, "delivered": 300, "rejected": 50}),
        (1251, {"complained": 1}),
        (499, {"complained": 20}),
        (2501, {"complained": 2}),
        (500, {}),
    ],
)
def test_a_broadcast_below_the_limits_or_the_sample_goes_on(accepted: int, told: dict[str, int]) -> None:
    broadcast_id = sending(accepted, **told)

    assert not check(broadcast_id)

    assert row(broadcast_id).status is BroadcastStatus.SENDING


def test_what_amazon_withholds_for_an_earlier_bounce_or_complaint_counts_for_nothing() -> None:
    broadcast_id = sending(500)
    lines = ledgers.lines(broadcast_id)
    withheld = {"subtype": "OnAccountSuppressionList"}
    bodies = [ses_events.bounce(line.id, **withheld) for line in lines[:50]]
    bodies += [ses_events.complaint(line.id, **withheld) for line in lines[50:60]]

    commit(feedback.take, bodies, NOW)

    assert not check(broadcast_id)
    assert feedback.counts(db.session(), broadcast_id)[Feedback.REJECTED] == 60


def test_of_two_who_find_the_same_reason_the_second_does_not_undo_what_a_person_decided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broadcast_id = sending(500, hard_bounce=20)
    break_circuit = broadcasts.break_circuit

    def break_after_another(*arguments: Any, **named: Any) -> bool:
        monkeypatch.setattr(broadcasts, "break_circuit", break_circuit)
        assert check(broadcast_id)
        commit(broadcasts.resume, broadcast_id)
        return break_circuit(*arguments, **named)

    monkeypatch.setattr(broadcasts, "break_circuit", break_after_another)

    assert not check(broadcast_id)
    assert row(broadcast_id).status is BroadcastStatus.SENDING


def test_what_is_known_at_the_break_does_not_break_it_again_and_what_comes_after_does() -> None:
    broadcast_id = sending(500, queued=1000, hard_bounce=20)
    check(broadcast_id)
    commit(broadcasts.resume, broadcast_id)

    tell(broadcast_id, Feedback.HARD_BOUNCE, 300)
    assert not check(broadcast_id)
    accept(broadcast_id, 500, at=timedelta(minutes=1))
    tell(broadcast_id, Feedback.HARD_BOUNCE, 19, since=timedelta(minutes=1))
    assert not check(broadcast_id)
    tell(broadcast_id, Feedback.HARD_BOUNCE, 1, since=timedelta(minutes=1))

    assert check(broadcast_id)


def test_a_broadcast_that_rests_for_a_while_does_not_go_on_by_itself_any_more() -> None:
    broadcast_id = sending(500, hard_bounce=20)
    commit(broadcasts.hold, broadcast_id, reason="The quota is used up.", now=NOW)

    assert check(broadcast_id)

    assert row(broadcast_id).resume_at is None


def test_whoever_pauses_what_the_circuit_breaker_paused_does_not_take_its_reason_away() -> None:
    broadcast_id = sending(500, hard_bounce=20)
    check(broadcast_id)
    before = row(broadcast_id).reason

    commit(broadcasts.pause, broadcast_id)

    assert before is not None
    assert (row(broadcast_id).status, row(broadcast_id).reason) == (BroadcastStatus.PAUSED, before)


@pytest.mark.parametrize("step", [broadcasts.pause, broadcasts.cancel])
def test_what_a_person_stopped_stays_as_it_is(step: object) -> None:
    broadcast_id = sending(500, hard_bounce=20)
    commit(step, broadcast_id)  # type: ignore[arg-type]
    before = row(broadcast_id).reason

    assert not check(broadcast_id)

    assert (row(broadcast_id).reason, row(broadcast_id).circuit_broken_at) == (before, None)


def test_a_broadcast_that_there_is_not_breaks_nothing() -> None:
    assert not check(4711)
