"""What an event of the mail service does to deliveries and registrations, however often and in whatever order."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from registration import addresses, consent, events, feedback, ledger, services
from registration.db import db
from registration.mailers import Recipient
from registration.models import (
    Delivery,
    DeliveryStatus,
    Feedback,
    FeedbackEvent,
    Registration,
    RegistrationStatus,
    SoftBounce,
)
from registration.reports import InstallationReport
from registration.tokens import ConfirmationLink

from . import factories, ledgers, people, ses_events
from .conftest import empty
from .ledgers import NOW, commit
from .ses_events import KINDS

pytestmark = pytest.mark.usefixtures("in_context")

_F, _S = Feedback, RegistrationStatus


def take(*bodies: str, now: datetime = NOW) -> None:
    commit(feedback.take, bodies, now)


def sent(number: int = 1) -> int:
    """Return a broadcast of which every message was accepted; their message ids are those of the events."""
    broadcast_id = ledgers.filled(number)
    settle_all(broadcast_id)
    return broadcast_id


def settle_all(*broadcast_ids: int) -> None:
    for broadcast_id in broadcast_ids:
        commit(ledger.accept, {line.id: f"0100-{line.id}" for line in ledgers.lines(broadcast_id)}, NOW)


def only(broadcast_id: int) -> Delivery:
    (line,) = ledgers.lines(broadcast_id)
    return line


def status_of(registration_id: int) -> RegistrationStatus:
    return db.session.execute(select(Registration.status).where(Registration.id == registration_id)).scalar_one()


def set_status(status: RegistrationStatus) -> None:
    db.session.execute(update(Registration).values(status=status))
    db.session.commit()


def stored_events() -> list[FeedbackEvent]:
    db.session.rollback()
    db.session.expire_all()
    return list(db.session.execute(select(FeedbackEvent).order_by(FeedbackEvent.id)).scalars())


def several_broadcasts(number: int) -> list[Delivery]:
    """Return the deliveries of as many broadcasts to one registration, all accepted."""
    factories.register(1)
    ids = [factories.start_broadcast(f"Number {one}") for one in range(number)]
    for broadcast_id in ids:
        while commit(ledger.fill, broadcast_id):
            pass
    settle_all(*ids)
    return [only(broadcast_id) for broadcast_id in ids]


@pytest.mark.parametrize("kind", KINDS)
def test_each_event_is_written_down_with_the_delivery(kind: str) -> None:
    make, expected = KINDS[kind]
    broadcast_id = sent()

    take(make(only(broadcast_id).id))

    line = only(broadcast_id)
    assert (line.feedback, line.status) == (expected, DeliveryStatus.SENT)
    assert line.feedback_at is not None
    assert [(event.status, event.body) for event in stored_events()] == [("applied", None)]


@pytest.mark.parametrize(
    ("before", "about", "is_valid"),
    [
        (_S.OPTED_OUT, "a broadcast", False),
        (_S.OPTED_OUT, "the confirmation mail", False),
        (_S.COMPLAINED, "the confirmation mail", False),
        (_S.COMPLAINED, "a broadcast", True),
    ],
)
def test_who_complains_does_not_come_back_by_a_confirmation_mail_from_before(
    before: _S, about: str, is_valid: bool
) -> None:
    broadcast_id = sent()
    db.session.execute(update(Registration).values(status=before, confirmation_sent_at=NOW))
    (address, product_id) = db.session.execute(select(Registration.email, Registration.product_id)).one()
    db.session.commit()
    delivery_id = only(broadcast_id).id if about == "a broadcast" else None

    take(ses_events.complaint(delivery_id, message_id="of a mail", address=address))
    commit(feedback.take_waiting, NOW + timedelta(hours=1))

    assert consent.is_confirmable(db.session(), ConfirmationLink(product_id, NOW)) is is_valid
    assert db.session.execute(select(Registration.status)).scalar_one() is _S.COMPLAINED


@pytest.mark.parametrize(("make", "expected"), [(ses_events.complaint, _S.COMPLAINED), (ses_events.bounce, _S.BOUNCED)])
def test_what_comes_of_mail_from_before_an_erasure_is_about_whoever_has_the_address_now(
    make: Any, expected: RegistrationStatus
) -> None:
    broadcast_id = sent(2)
    [email, other] = db.session.execute(select(Registration.email).order_by(Registration.id)).scalars()
    people.erase(email)
    factories.register_as(email, "third@example.org")
    [line, beside] = ledgers.lines(broadcast_id)

    # What is about somebody who is here is about the delivery alone, whatever address it names.
    take(make(line.id, address=email), make(beside.id, address="third@example.org"))

    statuses = db.session.execute(select(Registration.email, Registration.status)).all()
    assert dict(statuses) == {"": _S.ERASED, email: expected, other: expected, "third@example.org": _S.ACTIVE}


def test_the_id_of_what_is_put_aside_is_no_hash_from_which_an_address_can_be_guessed() -> None:
    bodies = ["{}", "{} ", *(f'{{"to": "{name}@example.org"}}' for name in ("ann", "bob"))]
    assert len({feedback._aside(each, "odd", NOW)["event_id"] for each in bodies}) == 3


@pytest.mark.parametrize("wrap", [str, ses_events.by_sns, ses_events.by_identity])
def test_an_event_is_understood_however_it_is_delivered(wrap: Any) -> None:
    broadcast_id = sent()

    take(wrap(ses_events.bounce(only(broadcast_id).id)))

    line = only(broadcast_id)
    assert (line.feedback, status_of(line.registration_id)) == (_F.HARD_BOUNCE, _S.BOUNCED)


def test_a_send_proves_that_a_message_was_accepted_and_says_nothing_more() -> None:
    broadcast_id = ledgers.filled(1)
    ledgers.claim(broadcast_id)

    take(ses_events.send(only(broadcast_id).id))

    line = only(broadcast_id)
    assert (line.status, line.message_id, line.feedback) == ("sent", f"0100-{line.id}", None)


@pytest.mark.parametrize("make", [ses_events.send, ses_events.delivery, ses_events.bounce, ses_events.reject])
@pytest.mark.parametrize("claimed", [True, False])
def test_an_event_before_our_own_commit_settles_the_delivery(make: Any, claimed: bool) -> None:
    broadcast_id = ledgers.filled(1)
    batch = ledgers.claim(broadcast_id) if claimed else None

    take(make(only(broadcast_id).id))
    if batch:
        ledgers.settle(batch, ledgers.UNKNOWN)

    assert only(broadcast_id).status is DeliveryStatus.SENT
    assert not commit(ledger.expire, broadcast_id, ledgers.AFTER_LEASE)


@pytest.mark.parametrize("status", [DeliveryStatus.FAILED, DeliveryStatus.CANCELLED, DeliveryStatus.SKIPPED])
def test_an_event_proves_a_delivery_sent_that_had_ended_otherwise(status: DeliveryStatus) -> None:
    broadcast_id = ledgers.filled(1)
    db.session.execute(update(Delivery).values(status=status, settled_at=NOW))
    db.session.commit()

    take(ses_events.delivery(only(broadcast_id).id))

    assert (only(broadcast_id).status, only(broadcast_id).feedback) == (DeliveryStatus.SENT, _F.DELIVERED)
    assert not commit(ledger.queue_again, broadcast_id, ledgers.AFTER_LEASE)


def test_an_event_that_names_only_a_message_id_waits_until_that_is_written_down() -> None:
    broadcast_id = ledgers.filled(1)
    line = only(broadcast_id)
    take(ses_events.by_identity(ses_events.bounce(line.id, address="somebody-else@example.org")))
    assert [event.status for event in stored_events()] == ["waiting"]
    assert only(broadcast_id).feedback is None
    settle_all(broadcast_id)

    assert commit(feedback.take_waiting, NOW + feedback.PATIENCE - timedelta(seconds=1)) == 0
    assert commit(feedback.take_waiting, NOW + feedback.PATIENCE) == 1

    assert (only(broadcast_id).feedback, status_of(line.registration_id)) == (_F.HARD_BOUNCE, _S.BOUNCED)
    assert [(event.status, event.body) for event in stored_events()] == [("applied", None)]


def test_patience_outlasts_the_lease_of_a_call() -> None:
    assert feedback.PATIENCE > ledger.LEASE


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (ses_events.bounce, _S.BOUNCED),
        (ses_events.complaint, _S.COMPLAINED),
        (ses_events.soft_bounce, _S.ACTIVE),
        (ses_events.delivery, _S.ACTIVE),
    ],
)
def test_an_event_of_no_delivery_is_about_the_address(make: Any, expected: RegistrationStatus) -> None:
    (email,) = factories.register(1)

    take(make(0, address=f"Somebody <{email.upper()}>"))

    assert db.session.execute(select(Registration.status)).scalar_one() is expected


def test_our_tag_counts_more_than_the_message_id_and_that_more_than_the_address() -> None:
    broadcast_id = sent(3)
    first, second, third = ledgers.lines(broadcast_id)
    email = select(Registration.email).where(Registration.id == third.registration_id)
    address = db.session.execute(email).scalar_one()

    take(ses_events.bounce(first.id, message_id=second.message_id, address=address))
    take(ses_events.by_identity(ses_events.complaint(None, message_id=second.message_id, address=address)))

    assert [line.feedback for line in ledgers.lines(broadcast_id)] == [_F.HARD_BOUNCE, _F.COMPLAINED, None]
    assert status_of(third.registration_id) is _S.ACTIVE


@pytest.mark.parametrize("tag", ["x", "-1", "", "1.5", "9" * 19, "9" * 40, "٣", ["1"], None])
def test_a_tag_that_is_not_ours_leads_to_no_delivery(tag: Any) -> None:
    broadcast_id = sent()
    event = json.loads(ses_events.bounce(1, message_id="0100-unknown"))
    event["mail"]["tags"]["delivery"] = [tag]

    take(json.dumps(event))

    assert only(broadcast_id).feedback is None


@pytest.mark.parametrize("make", [ses_events.bounce, ses_events.complaint, ses_events.send])
def test_an_event_of_somebody_elses_delivery_of_the_same_number_is_about_its_own_address(make: Any) -> None:
    """As after the database was restored from before that delivery, or of another environment."""
    broadcast_id = ledgers.filled(1)
    line = only(broadcast_id)
    (product_id,) = db.session.execute(select(Registration.product_id)).scalars()
    event = json.loads(make(line.id, address="another@example.org"))
    factories.register_as("another@example.org")

    other = Recipient(line.id, "", uuid.UUID(int=product_id.int ^ 1 << 127))
    event["mail"]["tags"] |= {name: [value] for name, value in other.tags.items()}
    take(json.dumps(event))

    line = only(broadcast_id)
    assert (line.status, line.feedback, line.message_id) == (DeliveryStatus.QUEUED, None, None)
    assert status_of(line.registration_id) is _S.ACTIVE
    there = select(Registration.status).where(Registration.email == "another@example.org")
    suppressed = {ses_events.bounce: _S.BOUNCED, ses_events.complaint: _S.COMPLAINED}
    assert db.session.execute(there).scalar_one() is suppressed.get(make, _S.ACTIVE)

    event["mail"]["tags"] |= {name: [value] for name, value in Recipient(line.id, "", product_id).tags.items()}
    event["mail"]["messageId"] = "0100-of-this-one"
    take(json.dumps(event))

    assert only(broadcast_id).message_id == "0100-of-this-one"


def test_feedback_never_goes_back() -> None:
    pairs = [(weaker, stronger) for weaker, stronger in permutations(KINDS, 2) if rank(weaker) < rank(stronger)]
    orders = [order for weaker, stronger in pairs for order in ((weaker, stronger), (stronger, weaker))]
    broadcast_id = sent(len(orders))
    for turn in (0, 1):
        for line, order in zip(ledgers.lines(broadcast_id), orders, strict=True):
            take(KINDS[order[turn]][0](line.id))

    for line, order in zip(ledgers.lines(broadcast_id), orders, strict=True):
        assert line.feedback is KINDS[max(order, key=rank)][1], order


def rank(kind: str) -> int:
    return feedback.RANKS.index(KINDS[kind][1])


@pytest.mark.parametrize("before", _S)
@pytest.mark.parametrize(("make", "wanted"), [(ses_events.bounce, _S.BOUNCED), (ses_events.complaint, _S.COMPLAINED)])
def test_feedback_suppresses_but_never_weakens_what_a_person_said(before: Any, make: Any, wanted: Any) -> None:
    broadcast_id = sent()
    set_status(before)

    take(make(only(broadcast_id).id))

    kept = {_S.COMPLAINED, _S.ERASED} if wanted is _S.COMPLAINED else {*_S} - {_S.ACTIVE}
    assert status_of(only(broadcast_id).registration_id) is (before if before in kept else wanted)


def test_an_opt_out_that_a_complaint_followed_cannot_be_undone_without_a_confirmation() -> None:
    line = only(sent())
    product_id = db.session.execute(select(Registration.product_id)).scalar_one()
    commit(consent.opt_out, product_id)

    take(ses_events.complaint(line.id))
    commit(consent.undo_opt_out, product_id)

    assert status_of(line.registration_id) is _S.COMPLAINED


def test_not_spam_is_not_a_complaint() -> None:
    broadcast_id = sent()

    take(ses_events.complaint(only(broadcast_id).id, kind="not-spam"))

    assert (only(broadcast_id).feedback, status_of(only(broadcast_id).registration_id)) == (None, _S.ACTIVE)


def test_an_event_has_its_effect_once() -> None:
    broadcast_id = sent()
    event = ses_events.bounce(only(broadcast_id).id)
    take(event, ses_events.by_sns(event))
    set_status(_S.ACTIVE)

    take(event)

    assert status_of(only(broadcast_id).registration_id) is _S.ACTIVE
    assert len(stored_events()) == 1


def test_two_bounces_of_one_message_are_two_events() -> None:
    line = only(sent())

    take(ses_events.delay(line.id, seconds=1), ses_events.delay(line.id, seconds=60))

    assert len(stored_events()) == 2
    assert only(line.broadcast_id).feedback_at == ses_events.AT + timedelta(seconds=60)


def test_five_broadcasts_that_bounce_for_the_moment_suppress() -> None:
    lines = several_broadcasts(5)
    for line in lines[:4]:
        take(ses_events.soft_bounce(line.id, seconds=1), ses_events.soft_bounce(line.id, seconds=2))
    assert status_of(lines[0].registration_id) is _S.ACTIVE

    take(ses_events.soft_bounce(lines[4].id))

    assert status_of(lines[0].registration_id) is _S.BOUNCED


def take_beside(application: Flask, first: str, second: str) -> None:
    """Take an event in a transaction that another begins beside, with the second event, before it is committed."""

    def take_second() -> None:
        with application.app_context():
            take(second)

    with ThreadPoolExecutor(1) as pool:
        with sessionmaker(db.engine).begin() as session:
            feedback.take(session, [first], NOW)
            beside = pool.submit(take_second)
            wait([beside], 0.3)
        beside.result()
    db.session.rollback()


def test_of_two_soft_bounces_taken_beside_each_other_both_count(application: Flask) -> None:
    lines = several_broadcasts(5)
    for line in lines[:3]:
        take(ses_events.soft_bounce(line.id))

    take_beside(application, *(ses_events.soft_bounce(line.id) for line in lines[3:]))

    assert status_of(lines[0].registration_id) is _S.BOUNCED


def test_a_soft_bounce_taken_beside_a_later_delivery_does_not_count(application: Flask) -> None:
    lines = several_broadcasts(2)

    take_beside(application, ses_events.delivery(lines[1].id), ses_events.soft_bounce(lines[0].id))

    assert db.session.execute(select(func.count()).select_from(SoftBounce)).scalar_one() == 0


def test_a_delivery_taken_beside_a_hard_bounce_does_not_take_it_back(
    application: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = several_broadcasts(6)
    for line in lines[:5]:
        take(ses_events.soft_bounce(line.id))
    count, beside = feedback._count_soft_bounces, []

    def take_delivery() -> None:
        with application.app_context():
            take(ses_events.delivery(lines[0].id))

    def count_after_another(*arguments: Any) -> None:
        if not beside:
            beside.append(pool.submit(take_delivery))
            wait(beside, 0.3)
        count(*arguments)

    monkeypatch.setattr(feedback, "_count_soft_bounces", count_after_another)
    with ThreadPoolExecutor(1) as pool:
        take(ses_events.bounce(lines[5].id))
        beside[0].result()
    db.session.rollback()

    assert status_of(lines[0].registration_id) is _S.BOUNCED


def test_a_delivery_begins_the_count_anew() -> None:
    lines = several_broadcasts(7)
    for line in lines:
        take((ses_events.delivery if line is lines[3] else ses_events.soft_bounce)(line.id))

    assert status_of(lines[0].registration_id) is _S.ACTIVE
    assert db.session.execute(select(func.count()).select_from(SoftBounce)).scalar_one() == 3


def test_what_answers_a_delivered_message_is_no_bounce() -> None:
    lines = several_broadcasts(5)
    for line in lines:
        take(ses_events.delivery(line.id), ses_events.soft_bounce(line.id, seconds=5))

    assert status_of(lines[0].registration_id) is _S.ACTIVE
    assert only(lines[0].broadcast_id).feedback is _F.DELIVERED


def test_a_late_delivery_takes_back_what_soft_bounces_alone_did() -> None:
    lines = several_broadcasts(6)
    for line in lines:
        if line is not lines[2]:
            take(ses_events.soft_bounce(line.id))
    assert status_of(lines[0].registration_id) is _S.BOUNCED

    take(ses_events.delivery(lines[2].id))

    assert status_of(lines[0].registration_id) is _S.ACTIVE


def test_a_late_delivery_takes_nothing_back_where_five_soft_bounces_are_left() -> None:
    lines = several_broadcasts(7)
    for line in lines:
        if line is not lines[1]:
            take(ses_events.soft_bounce(line.id))

    take(ses_events.delivery(lines[1].id))

    assert status_of(lines[0].registration_id) is _S.BOUNCED


def test_a_late_delivery_takes_back_no_hard_bounce() -> None:
    lines = several_broadcasts(7)
    take(ses_events.bounce(lines[0].id))
    for line in lines[1:6]:
        take(ses_events.soft_bounce(line.id))

    take(ses_events.delivery(lines[6].id))

    assert status_of(lines[0].registration_id) is _S.BOUNCED


def test_a_hard_bounce_from_before_somebody_came_back_does_not_count_any_more() -> None:
    lines = several_broadcasts(6)
    take(ses_events.bounce(lines[0].id, seconds=-3600))
    email = db.session.execute(select(Registration.email)).scalar_one()
    again = {"product_id": uuid.uuid4(), "now": NOW, "installation": InstallationReport()}
    services.current().registrar.register(addresses.normalise(email), **again)
    assert status_of(lines[0].registration_id) is _S.ACTIVE
    for line in lines[1:]:
        take(ses_events.soft_bounce(line.id))
    assert status_of(lines[0].registration_id) is _S.BOUNCED

    take(ses_events.delivery(lines[5].id))

    assert status_of(lines[0].registration_id) is _S.ACTIVE


def test_a_late_delivery_takes_back_what_soft_bounces_did_whoever_else_bounced_for_good() -> None:
    somebody_else = sent()
    take(ses_events.bounce(only(somebody_else).id))
    lines = several_broadcasts(6)
    for line in lines[1:]:
        take(ses_events.soft_bounce(line.id))
    assert status_of(lines[0].registration_id) is _S.BOUNCED

    take(ses_events.delivery(lines[3].id))

    assert status_of(lines[0].registration_id) is _S.ACTIVE


@pytest.mark.parametrize("make", [ses_events.bounce, ses_events.complaint])
def test_what_is_withheld_suppresses_and_ends_no_row_of_soft_bounces(make: Any) -> None:
    lines = several_broadcasts(6)
    for line in lines[:5]:
        take(ses_events.soft_bounce(line.id))

    take(make(lines[5].id, subtype="OnAccountSuppressionList"))

    assert ledgers.lines(lines[5].broadcast_id)[0].feedback is _F.REJECTED
    assert status_of(lines[0].registration_id) is (_S.BOUNCED if make is ses_events.bounce else _S.COMPLAINED)


MALFORMED = {
    "": "not JSON",
    "Successfully validated SNS topic for Amazon SES event publishing.": "not JSON",
    "[" * 100_000: "not JSON",
    "[]": "not a JSON object",
    '{"Message": "x"}': "not JSON",
    "{}": "eventType",
    '{"eventType": ["Bounce"]}': "eventType",
    '{"eventType": "Explosion"}': "eventType",
    '{"eventType": "Send"}': "mail is not",
    '{"eventType": "Send", "mail": {}}': "messageId",
    '{"eventType": "Send", "mail": {"messageId": "\\ud800"}}': "messageId",
    '{"eventType": "Send", "mail": {"messageId": "1"}}': "recipients",
    '{"eventType": "Send", "mail": {"messageId": "1", "destination": [], "timestamp": "soon"}}': "timestamp",
    '{"eventType": "Bounce", "mail": {"messageId": "1"}, "bounce": []}': "bounce is not",
    '{"eventType": "Bounce", "mail": {"messageId": "1"}, "bounce": {"bouncedRecipients": []}}': "bounceType",
    "x" * (events.LONGEST_BODY + 1): "longer",
    "\\" * 1_000_000: "longer",
    "&" * 1_000_000: "longer",
}


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: body[:60])
def test_a_malformed_event_is_put_aside_with_the_reason_and_holds_up_nobody(body: str) -> None:
    broadcast_id = sent()

    take(body, ses_events.delivery(only(broadcast_id).id))
    take(body)

    assert sorted(event.status for event in stored_events()) == ["applied", "aside"]
    (kept,) = [event for event in stored_events() if event.status == "aside"]
    assert MALFORMED[body] in (kept.problem or "")
    assert body.startswith(kept.body or "")
    assert len(kept.body or "") <= 16_384
    assert only(broadcast_id).feedback is _F.DELIVERED


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("To: Ann <ann+1@example.org>, x", "To: Ann <[address]>, x"),
        ('{"destination":["o\'ann@example.org","b"]}', '{"destination":["[address]","b"]}'),
        ('{"Message": "{\\"to\\":\\"ann@example.org\\"}"}', '{"Message": "{\\"to\\":\\"[address]\\"}"}'),
        (r'["\u0061nn\u002b1\u0040example\u002Eorg", 1]', '["[address]", 1]'),
        (r'["{\"to\":\"ann\\u0040example.org\\n\"}"]', r'["{\"to\":\"[address]\\n\"}"]'),
        (r'["ann\/bob@example.org"]', '["[address]"]'),
        ("https://example.com/x?to=ann%40example.org&y=1 z", "https:[address] z"),
        ("ann=40example.org ann&#64;example.org ann&commat;example.org", "[address] [address] [address]"),
        ("ann%2540example.org ann&#x40example.org", "[address] [address]"),
        ("ann&amp;#64;example.org", "[address];example.org"),
        ("ann\uff20example.org", "[address]"),
        ("x" * 16_380 + " ann@example.org", "x" * 16_380 + " [ad"),
        ("No address: 4 of 5, \\n a\\b & c; d%4 =4", "No address: 4 of 5, \\n a\\b & c; d%4 =4"),
    ],
)
def test_what_is_put_aside_names_no_address(body: str, kept: str) -> None:
    take(body)

    assert [event.body for event in stored_events()] == [kept]


@given(
    address=st.from_regex(r"[a-z0-9!#$%&'*+/=?^_`{|}~.-]{8,64}@[a-z0-9.-]{1,60}", fullmatch=True),
    write=st.sampled_from([str, json.dumps, lambda address: json.dumps(json.dumps({"to": [f"Ann <{address}>"]}))]),
    around=st.tuples(st.text(max_size=5), st.text(max_size=5)),
)
@settings(deadline=None)
def test_no_way_of_writing_an_address_keeps_it(
    address: str, write: Callable[[str], str], around: tuple[str, str]
) -> None:
    row = feedback._aside(f"{around[0]} {write(address)} {around[1]}", "odd", NOW)

    assert "@" not in row["body"]
    assert address.partition("@")[0] not in row["body"]


def test_old_events_are_forgotten_and_new_ones_kept() -> None:
    lines = ledgers.lines(sent(3))
    take(ses_events.send(lines[0].id), "not an event", ses_events.by_identity(ses_events.send(99)))
    take(ses_events.send(lines[1].id), now=NOW + timedelta(seconds=1))

    assert commit(feedback.forget, NOW + feedback.RETENTION) == 3
    assert commit(feedback.forget, NOW + feedback.RETENTION) == 0

    assert len(stored_events()) == 1


def test_what_could_not_be_applied_is_put_aside_once() -> None:
    for _ in range(2):
        commit(feedback.put_aside, "some body", "It could not be applied: KeyError.", NOW)

    assert [(event.status, event.problem) for event in stored_events()] == [
        ("aside", "It could not be applied: KeyError.")
    ]


def test_feedback_is_counted_by_broadcast() -> None:
    broadcast_id = sent(4)
    lines = ledgers.lines(broadcast_id)
    take(ses_events.delivery(lines[0].id), ses_events.complaint(ledgers.lines(sent())[0].id))
    take(ses_events.delivery(lines[1].id), ses_events.bounce(lines[2].id))

    told = commit(feedback.counts, broadcast_id)

    assert told == {**dict.fromkeys(Feedback, 0), _F.DELIVERED: 2, _F.HARD_BOUNCE: 1}


def state() -> Any:
    """Return all that events have an effect on."""
    db.session.rollback()
    columns = (Delivery.broadcast_id, Delivery.status, Delivery.feedback, Delivery.feedback_at, Delivery.message_id)
    return (
        db.session.execute(select(*columns).order_by(Delivery.id)).all(),
        db.session.execute(select(Registration.status)).all(),
        sorted(db.session.execute(select(SoftBounce.registration_id, SoftBounce.broadcast_id)).all()),
        sorted(db.session.execute(select(FeedbackEvent.event_id, FeedbackEvent.status)).all()),
    )


HISTORIES = st.lists(st.tuples(st.integers(0, 6), st.sampled_from(sorted(KINDS)), st.integers(1, 3)), max_size=14)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=HISTORIES, data=st.data())
def test_the_end_is_the_same_in_any_order_and_with_any_repetition(history: Any, data: st.DataObject) -> None:
    empty()
    (registration_id, deliveries) = _seven_broadcasts()
    bodies = [KINDS[kind][0](deliveries[number], **_moment(kind, at)) for number, kind, at in history]
    orders = [bodies, data.draw(st.permutations(bodies)) + bodies[: data.draw(st.integers(0, len(bodies)))]]
    size = data.draw(st.integers(1, 10))

    ends = []
    for order in orders:
        _begin_again(registration_id)
        for start in range(0, len(order), size):
            take(*order[start : start + size])
        ends.append(state())

    assert ends[0] == ends[1]


def _moment(kind: str, at: int) -> dict[str, int]:
    return {} if kind in {"reject", "rendering failure"} else {"seconds": at}


def _seven_broadcasts() -> tuple[int, list[int]]:
    lines = several_broadcasts(7)
    return lines[0].registration_id, [line.id for line in lines]


def _begin_again(registration_id: int) -> None:
    for model in (FeedbackEvent, SoftBounce):
        db.session.execute(model.__table__.delete())
    db.session.execute(update(Delivery).values(feedback=None, feedback_at=None, status="sending", message_id=None))
    set_status(_S.ACTIVE)


def test_a_flood_in_one_transaction_is_no_different(application: Flask) -> None:
    broadcast_id = sent(500)
    lines = ledgers.lines(broadcast_id)

    take(*[ses_events.delivery(line.id) for line in lines], *[ses_events.bounce(line.id) for line in lines[:100]])

    told = commit(feedback.counts, broadcast_id)
    assert (told[_F.DELIVERED], told[_F.HARD_BOUNCE]) == (400, 100)


def test_of_two_who_take_an_event_at_once_the_key_fails_one(monkeypatch: pytest.MonkeyPatch) -> None:
    event = ses_events.send(only(sent()).id)
    take(event)
    monkeypatch.setattr(feedback, "_known", lambda *_: set())

    with pytest.raises(IntegrityError):
        take(event)

    assert len(stored_events()) == 1


def test_an_event_does_not_wait_for_those_of_other_registrations() -> None:
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has one writer at a time")
    first, second = (ses_events.delivery(line.id) for line in ledgers.lines(sent(2)))
    with Session(db.engine) as one, Session(db.engine) as other:
        other.execute(text("SET innodb_lock_wait_timeout = 0"))
        for session, event in ((one, first), (other, second)):
            feedback.take(session, [event], NOW)
