"""Broadcasts over HTTP: repeated posts, tests, steering, and what is told of them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import pymysql
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import sessionmaker
from werkzeug.test import TestResponse

from registration import broadcasts, feedback, monitoring, pacing, services
from registration.db import db
from registration.mailers import Account, Outcome, Recipient, Verdict
from registration.messages import Message
from registration.models import Broadcast, BroadcastRequest, Delivery, RegistrationStatus
from registration.web import control

from . import factories, failing, ses_events
from .conftest import HEADERS, PIN
from .ledgers import NOW, claim, commit, filled, lines, settle
from .running import sending
from .waiting import until

BROADCASTS = "/api/registration/broadcast"
NOTICE = {"title": "Update now", "contents": "There is a hole.\n"}
STEPS = ("pause", "resume", "cancel", "retry")
ACCEPTED = Outcome(Verdict.ACCEPTED, message_id="0100-1")


class SlowMailer:
    """Takes its time for each call, and notes when it began and for whom."""

    def __init__(self, seconds: float = 0.0, largest_batch: int = 5, outcome: Outcome = ACCEPTED) -> None:
        self.seconds = seconds
        self.largest = largest_batch
        self.outcome = outcome
        self.sent: Counter[str] = Counter()
        self.begun: list[float] = []
        self.messages: list[Message] = []

    def send(self, message: Message, recipients: Sequence[Recipient]) -> list[Outcome]:
        self.begun.append(time.monotonic())
        self.messages.append(message)
        time.sleep(self.seconds)
        self.sent.update(recipient.address for recipient in recipients)
        return [self.outcome] * len(recipients)

    def account(self) -> Account | None:
        return Account(100.0)

    def largest_batch(self, message: Message) -> int:
        return self.largest


def post(client: FlaskClient, path: str = "", headers: dict[str, str] | None = None, **fields: str) -> TestResponse:
    return client.post(f"{BROADCASTS}{path}", data=fields, headers=HEADERS | (headers or {}))


def get(client: FlaskClient, path: str = "", **query: Any) -> TestResponse:
    return client.get(f"{BROADCASTS}{path}", query_string=query, headers=HEADERS)


def register(application: Flask, number: int) -> list[str]:
    with application.app_context():
        return factories.register(number)


def count(application: Flask, model: type[Any]) -> int:
    with application.app_context():
        return db.session.execute(select(func.count()).select_from(model)).scalar_one()


def let_time_pass(application: Flask, passed: timedelta) -> None:
    """Make every request that was written down so much older."""
    with application.app_context():
        created_at = datetime.now(UTC) - passed
        db.session.execute(update(BroadcastRequest).values(created_at=created_at))
        db.session.commit()


def assert_problem(response: TestResponse, status: int, title: str) -> None:
    assert (response.status_code, response.content_type) == (status, "application/problem+json")
    assert response.json["title"] == title


# HTML


def test_html_is_sent_in_place_of_the_rendered_text(application: Flask, client: FlaskClient) -> None:
    register(application, 1)
    mailer = SlowMailer()

    with sending(application, mailer):
        assert post(client, **NOTICE, html="<p>Own</p>").status_code in {200, 202}
        until(lambda: bool(mailer.messages))

    assert mailer.messages == [Message(NOTICE["title"], NOTICE["contents"], html="<p>Own</p>")]


@pytest.mark.parametrize("html", ["", "x" * 200_001, "a\0b"])
def test_html_that_cannot_be_sent_is_answered_400_and_named(client: FlaskClient, html: str) -> None:
    response = post(client, **NOTICE, html=html)

    assert_problem(response, 400, "InvalidEmailMessageException")
    assert "html" in response.json["detail"]


# Posting twice


@pytest.fixture
def waiting(settings: dict[str, str]) -> None:
    settings["BROADCAST_WAIT_SECONDS"] = "20"


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "the-key"}])
def test_of_two_simultaneous_posts_one_is_sent_and_both_are_answered(
    waiting: None, application: Flask, headers: dict[str, str]
) -> None:
    emails = register(application, 30)
    mailer, barrier = SlowMailer(), threading.Barrier(2)

    def click(_: int) -> TestResponse:
        barrier.wait()
        return post(application.test_client(), headers=headers, **NOTICE)

    with sending(application, mailer), ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(click, range(2)))

    assert [(answer.status_code, answer.json["status"], answer.json["sent"]) for answer in answers] == [
        (200, "sent", 30)
    ] * 2
    assert sorted("repeated" in answer.json for answer in answers) == [False, True]
    assert len({answer.json["broadcastId"] for answer in answers}) == 1
    assert mailer.sent == Counter(emails)
    assert count(application, Broadcast) == 1


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "the-key"}])
def test_a_second_post_is_answered_with_the_first_broadcast(
    application: Flask, client: FlaskClient, headers: dict[str, str]
) -> None:
    register(application, 2)
    first = post(client, headers=headers, **NOTICE)

    second = post(client, headers=headers, **NOTICE)

    assert (second.status_code, second.json["repeated"]) == (202, True)
    assert second.json["broadcastId"] == first.json["broadcastId"]
    assert second.headers["Location"] == first.headers["Location"]
    assert "repeated" not in first.json


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "the-key"}])
def test_an_urgent_repetition_makes_the_first_urgent_and_another_leaves_it_so(
    application: Flask, client: FlaskClient, headers: dict[str, str]
) -> None:
    register(application, 2)
    answers = [post(client, headers=headers, **NOTICE, urgent=urgent).json for urgent in ("false", "true", "false")]

    assert [answer["urgent"] for answer in answers] == [False, True, True]
    assert ["repeated" in answer for answer in answers] == [False, True, True]
    assert len({answer["broadcastId"] for answer in answers}) == 1


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "the-key"}])
def test_after_a_day_the_same_post_is_a_new_broadcast(
    application: Flask, client: FlaskClient, headers: dict[str, str]
) -> None:
    first = post(client, headers=headers, **NOTICE)
    let_time_pass(application, broadcasts.REPEAT)

    second = post(client, headers=headers, **NOTICE)

    assert "repeated" not in second.json
    assert second.json["broadcastId"] != first.json["broadcastId"]


def test_the_same_is_sent_again_when_that_is_asked_for(application: Flask, client: FlaskClient) -> None:
    first = post(client, **NOTICE)

    second = post(client, **NOTICE, resend="true")

    assert "repeated" not in second.json
    assert second.json["broadcastId"] != first.json["broadcastId"]
    assert post(client, **NOTICE, resend="true").json["repeated"] is True


def test_another_key_starts_another_broadcast(client: FlaskClient) -> None:
    ids = [post(client, headers={"Idempotency-Key": key}, **NOTICE).json["broadcastId"] for key in "abab"]

    assert ids[0] != ids[1]
    assert ids[:2] == ids[2:]


def test_blanks_around_a_key_make_no_other_key(client: FlaskClient) -> None:
    ids = {post(client, headers={"Idempotency-Key": key}, **NOTICE).json["broadcastId"] for key in ("a", " a\t ", "a ")}

    assert len(ids) == 1


def test_a_key_that_was_used_for_another_message_is_answered_422(application: Flask, client: FlaskClient) -> None:
    headers = {"Idempotency-Key": "the-key"}
    post(client, headers=headers, **NOTICE)

    response = post(client, headers=headers, title="Update now", contents="There is another hole.")

    assert_problem(response, 422, "IdempotencyKeyException")
    assert count(application, Broadcast) == 1


@pytest.mark.parametrize("key", ["", "  ", "x" * 256, "caf\u00e9", "a\tb"])
def test_a_key_that_is_unusable_is_answered_400(application: Flask, client: FlaskClient, key: str) -> None:
    assert_problem(post(client, headers={"Idempotency-Key": key}, **NOTICE), 400, "InvalidIdempotencyKeyException")
    assert count(application, Broadcast) == 0


@pytest.mark.parametrize("key", ["x", "x" * 255, '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "a b~!"])
def test_a_key_may_be_any_printable_text(client: FlaskClient, key: str) -> None:
    assert post(client, headers={"Idempotency-Key": key}, **NOTICE).status_code == 200


@pytest.mark.parametrize("name", ["urgent", "resend"])
@pytest.mark.parametrize("value", ["", "yes", "1", "truefalse"])
def test_what_is_neither_true_nor_false_is_answered_400(
    application: Flask, client: FlaskClient, name: str, value: str
) -> None:
    assert_problem(post(client, **NOTICE, **{name: value}), 400, "InvalidEmailMessageException")
    assert count(application, Broadcast) == 0


@pytest.mark.parametrize(("value", "urgent"), [("true", True), ("TRUE", True), ("false", False)])
def test_a_broadcast_can_be_urgent(client: FlaskClient, value: str, urgent: bool) -> None:
    assert post(client, **NOTICE, urgent=value).json["urgent"] is urgent


@pytest.mark.parametrize(("value", "status"), [(True, 200), (False, 200), (1, 400), (None, 400), ([], 400)])
def test_a_flag_in_json_is_a_flag(client: FlaskClient, value: object, status: int) -> None:
    response = client.post(BROADCASTS, json=NOTICE | {"urgent": value}, headers=HEADERS)

    assert response.status_code == status


# Trying it out


@pytest.fixture
def mailer(application: Flask) -> SlowMailer:
    mailer = SlowMailer()
    services.of(application).mailer = lambda: mailer
    return mailer


def test_a_test_goes_to_the_address_at_once_and_into_no_ledger(
    application: Flask, client: FlaskClient, mailer: SlowMailer
) -> None:
    register(application, 3)

    response = post(client, **NOTICE, test="Ann@Example.org")

    assert (response.status_code, response.json) == (200, {"status": "sent", "test": True})
    assert mailer.sent == {"Ann@Example.org": 1}
    assert [message.subject for message in mailer.messages] == ["[TEST] Update now"]
    assert [count(application, model) for model in (Broadcast, BroadcastRequest, Delivery)] == [0, 0, 0]


def test_a_test_is_sent_as_often_as_it_is_asked_for(client: FlaskClient, mailer: SlowMailer) -> None:
    for _ in range(2):
        assert post(client, headers={"Idempotency-Key": "a"}, **NOTICE, test="ann@example.org").status_code == 200

    assert mailer.sent == {"ann@example.org": 2}


@pytest.mark.parametrize("address", ["", " ", "true", "ann", "a@b@example.org"])
def test_a_test_to_what_is_no_address_goes_to_nobody(
    application: Flask, client: FlaskClient, mailer: SlowMailer, address: str
) -> None:
    register(application, 1)

    assert_problem(post(client, **NOTICE, test=address), 400, "InvalidEmailException")
    assert not mailer.sent
    assert count(application, Broadcast) == 0


@pytest.mark.parametrize(
    ("verdict", "status", "title"),
    [
        (Verdict.THROTTLED, 503, "MailServiceBusyException"),
        (Verdict.HELD, 503, "MailServiceBusyException"),
        (Verdict.REFUSED, 502, "MailServiceRefusedException"),
        (Verdict.UNKNOWN, 502, "MailServiceRefusedException"),
    ],
)
def test_a_test_that_the_mail_service_does_not_take_is_answered_with_its_reason(
    client: FlaskClient, mailer: SlowMailer, verdict: Verdict, status: int, title: str
) -> None:
    mailer.outcome = Outcome(verdict, reason="Verify the sender.")

    response = post(client, **NOTICE, test="ann@example.org")

    assert_problem(response, status, title)
    assert response.json["detail"] == "Verify the sender."


def test_a_test_keeps_the_pace(application: Flask, client: FlaskClient, mailer: SlowMailer) -> None:
    with application.app_context():
        commit(pacing.remember_account, Account(5.0))

    begun = time.monotonic()

    for _ in range(3):
        post(client, **NOTICE, test="ann@example.org")

    assert mailer.begun[2] - begun >= 0.4


# Steering


@pytest.mark.parametrize("step", STEPS)
def test_a_broadcast_is_steered_with_the_pin_only(application: Flask, client: FlaskClient, step: str) -> None:
    broadcast_id = post(client, **NOTICE).json["broadcastId"]

    assert_problem(client.post(f"{BROADCASTS}/{broadcast_id}/{step}"), 401, "InvalidSecretPinException")
    assert client.post(f"{BROADCASTS}/{broadcast_id}/{step}", data={"secretPin": PIN}).status_code == 200
    assert client.get(f"{BROADCASTS}/{broadcast_id}/{step}", headers=HEADERS).status_code == 405


@pytest.mark.parametrize("step", STEPS)
def test_to_steer_an_unknown_broadcast_is_answered_404(client: FlaskClient, step: str) -> None:
    assert_problem(post(client, f"/4711/{step}"), 404, "UnknownBroadcastException")


@pytest.mark.parametrize(
    ("steps", "status"),
    [
        (["pause"], "paused"),
        (["pause", "resume"], "sending"),
        (["resume"], "sending"),
        (["cancel"], "cancelled"),
        (["pause", "cancel", "resume"], "cancelled"),
        (["cancel", "pause"], "cancelled"),
        (["cancel", "retry"], "sending"),
        (["retry"], "sending"),
    ],
)
def test_each_step_is_answered_with_the_figures_and_may_be_repeated(
    application: Flask, client: FlaskClient, steps: list[str], status: str
) -> None:
    register(application, 3)
    broadcast_id = post(client, **NOTICE).json["broadcastId"]

    for step in steps:
        for _ in range(2):
            response = post(client, f"/{broadcast_id}/{step}")

    assert (response.status_code, response.json["status"], response.json["recipients"]) == (200, status, 3)
    assert response.json.keys() == get(client, f"/{broadcast_id}").json.keys() - {"feedback"}


@pytest.mark.parametrize("seconds", [0.02, 0.4])
def test_after_a_pause_no_call_begins_and_after_a_resume_everybody_gets_it_once(
    application: Flask, client: FlaskClient, seconds: float
) -> None:
    emails = register(application, 500)
    mailer = SlowMailer(seconds)
    with sending(application, mailer):
        broadcast_id = post(client, **NOTICE).json["broadcastId"]
        until(lambda: len(mailer.begun) >= 3)

        paused = post(client, f"/{broadcast_id}/pause")
        paused_at = time.monotonic()
        time.sleep(1.0)
        calls = len(mailer.begun)
        time.sleep(1.0)

        assert paused.json["status"] == "paused"
        assert len(mailer.begun) == calls
        assert max(mailer.begun) < paused_at + 1.0
        assert 0 < mailer.sent.total() < len(emails)
        post(client, f"/{broadcast_id}/resume")
        until(lambda: get(client, f"/{broadcast_id}").json["status"] == "sent")

    assert mailer.sent == Counter(emails)


def test_a_cancel_ends_a_broadcast_and_a_retry_sends_it_to_the_rest(application: Flask, client: FlaskClient) -> None:
    emails = register(application, 500)
    mailer = SlowMailer(0.05)
    with sending(application, mailer):
        broadcast_id = post(client, **NOTICE).json["broadcastId"]
        until(lambda: len(mailer.begun) >= 3)

        assert post(client, f"/{broadcast_id}/cancel").json["status"] == "cancelled"
        until(lambda: get(client, f"/{broadcast_id}").json["finishedAt"] is not None)

        end = get(client, f"/{broadcast_id}").json
        assert end["status"] == "cancelled"
        assert end["recipients"] == end["sent"] + end["failed"] + end["skipped"] + end["cancelled"] == len(emails)
        assert end["sent"] == mailer.sent.total() > 0
        assert end["cancelled"] > 0
        assert post(client, f"/{broadcast_id}/retry").json["status"] == "sending"
        until(lambda: get(client, f"/{broadcast_id}").json["status"] == "sent")

    assert mailer.sent == Counter(emails)


def test_whoever_waits_is_told_of_a_cancel_when_the_figures_are_final(application: Flask, client: FlaskClient) -> None:
    application.config["BROADCAST_WAIT_SECONDS"] = 10.0
    register(application, 500)
    mailer = SlowMailer(0.05)
    with sending(application, mailer), ThreadPoolExecutor() as pool:
        waiting = pool.submit(lambda: post(application.test_client(), **NOTICE))
        until(lambda: len(mailer.begun) >= 3)
        (only,) = get(client, "").json["broadcasts"]
        post(client, f"/{only['broadcastId']}/cancel")

        answer = waiting.result()

    assert (answer.status_code, answer.json["status"], answer.json["remaining"]) == (200, "cancelled", 0)


def test_steering_by_many_at_once_loses_nobody_and_sends_nothing_twice(application: Flask, client: FlaskClient) -> None:
    emails = register(application, 100)
    mailer = SlowMailer(0.01)

    def steer(number: int) -> set[int]:
        own, answers = application.test_client(), set()
        for turn in range(6):
            answers.add(post(own, f"/{broadcast_id}/{STEPS[(number + turn) % 4]}").status_code)
        return answers

    with sending(application, mailer), sending(application, mailer):
        broadcast_id = post(client, **NOTICE).json["broadcastId"]
        with ThreadPoolExecutor(4) as pool:
            assert set().union(*pool.map(steer, range(4))) == {200}
        post(client, f"/{broadcast_id}/resume")
        until(lambda: get(client, f"/{broadcast_id}").json["finishedAt"] is not None)
        post(client, f"/{broadcast_id}/retry")
        until(lambda: get(client, f"/{broadcast_id}").json["status"] == "sent")

    assert mailer.sent == Counter(emails)


def test_a_step_that_gave_way_to_a_sender_is_taken_again(
    application: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(application, 1)
    broadcast_id = post(client, **NOTICE).json["broadcastId"]
    left = failing.at_first(monkeypatch, broadcasts, "pause", failing.deadlock())

    assert post(client, f"/{broadcast_id}/pause").json["status"] == "paused"
    assert left == []


def test_a_start_that_gave_way_to_another_is_tried_again(
    application: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(application, 1)
    left = failing.at_first(monkeypatch, broadcasts, "start", failing.deadlock())

    assert "repeated" not in post(client, **NOTICE).json
    assert left == []
    assert [told["title"] for told in get(client).json["broadcasts"]] == [NOTICE["title"]]


@pytest.mark.parametrize("step", STEPS)
def test_whoever_sends_hears_of_a_start_and_of_each_step(
    application: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    woken: list[str] = []
    monkeypatch.setattr(services.of(application), "wake", lambda: woken.append(step))
    register(application, 1)
    broadcast_id = post(client, **NOTICE).json["broadcastId"]
    assert len(woken) == 1

    post(client, f"/{broadcast_id}/{step}")

    assert len(woken) == 2


def test_a_broadcast_is_there_before_anything_is_counted(
    application: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To count what others have left takes seconds beside broadcasts of a million; a second click waited and failed."""
    register(application, 1)
    seen: list[Sequence[int]] = []

    def progress(*_: Any, **__: Any) -> None:
        with sessionmaker(db.engine).begin() as other:
            seen.append(broadcasts.page(other, limit=10))
        raise OperationalError("", {}, pymysql.err.OperationalError(2013, "Lost connection"))

    monkeypatch.setattr(monitoring, "progress", progress)
    answer = post(client, **NOTICE)

    ((broadcast_id,),) = seen
    expected = {"status": "sending", "broadcastId": broadcast_id, "recipients": 1, "sent": 0, "failed": 0}
    assert (answer.status_code, answer.json) == (202, expected | {"finishedAt": None})
    assert answer.headers["Location"].endswith(f"/{broadcast_id}")
    assert post(client, **NOTICE).status_code == 503


def test_a_retry_goes_by_the_clock_that_deliveries_are_settled_by(
    application: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A web host whose clock was behind answered 200 and queued nobody."""
    register(application, 2)
    mailer = SlowMailer(outcome=Outcome(Verdict.REFUSED, reason="No such mailbox."))
    with sending(application, mailer):
        broadcast_id = post(client, **NOTICE).json["broadcastId"]
        until(lambda: get(client, f"/{broadcast_id}").json["status"] == "sent")
    ahead = timedelta(hours=1)
    monkeypatch.setattr(control, "database_time", lambda _: datetime.now(UTC) + ahead)
    with application.app_context():
        db.session.execute(update(Delivery).values(settled_at=datetime.now(UTC) + ahead / 2))
        db.session.commit()

    assert post(client, f"/{broadcast_id}/retry").json["remaining"] == 2


def test_a_retry_ends_although_the_mail_service_refuses_at_once(application: Flask, client: FlaskClient) -> None:
    register(application, 2)
    mailer = SlowMailer(outcome=Outcome(Verdict.REFUSED, reason="No such mailbox."))
    with sending(application, mailer):
        broadcast_id = post(client, **NOTICE).json["broadcastId"]
        until(lambda: get(client, f"/{broadcast_id}").json["status"] == "sent")
        post(client, f"/{broadcast_id}/retry")
        until(lambda: get(client, f"/{broadcast_id}").json["status"] == "sent")

    assert get(client, f"/{broadcast_id}").json["failed"] == 2
    assert set(mailer.sent.values()) == {2}


# Telling


def test_what_is_told_of_a_broadcast(application: Flask, client: FlaskClient) -> None:
    with application.app_context():
        factories.register(98)
        factories.register(1, status=RegistrationStatus.OPTED_OUT)
        commit(pacing.remember_account, Account(10.0))
        factories.put_sender_to_work()
    begun = datetime.now(UTC).replace(microsecond=0)
    broadcast_id = post(client, **NOTICE, urgent="true").json["broadcastId"]

    told = get(client, f"/{broadcast_id}").json

    assert set(told.pop("feedback").values()) == {0}
    times = {name: told.pop(name) for name in ("createdAt", "expectedEnd")}
    assert told == {
        "status": "sending",
        "reason": None,
        "broadcastId": broadcast_id,
        "title": "Update now",
        "urgent": True,
        "versions": None,
        "recipients": 98,
        "sent": 0,
        "failed": 0,
        "skipped": 0,
        "cancelled": 0,
        "remaining": 98,
        "rate": 0.0,
        "secondsLeft": 11,
        "resumeAt": None,
        "finishedAt": None,
    }
    created_at, expected_end = (datetime.fromisoformat(times[name]) for name in ("createdAt", "expectedEnd"))
    ended = datetime.now(UTC)
    assert begun <= created_at <= ended
    assert created_at + timedelta(seconds=9) <= expected_end <= ended + timedelta(seconds=12)
    assert times["createdAt"].endswith("Z")


def test_the_end_of_a_broadcast_that_needs_days_is_told(application: Flask, client: FlaskClient) -> None:
    with application.app_context():
        factories.register(30)
        commit(pacing.remember_account, Account(10.0, daily_quota=10, sent_last_day=10))
        factories.put_sender_to_work()

    answer = post(client, **NOTICE)

    assert answer.status_code == 202
    assert 3 * 86400 <= answer.json["secondsLeft"] < 3 * 86400 + 10
    assert datetime.fromisoformat(answer.json["expectedEnd"]) > datetime.now(UTC) + timedelta(days=2, hours=23)


def test_a_broadcast_that_is_held_up_tells_when_it_goes_on(application: Flask, client: FlaskClient) -> None:
    register(application, 1)
    broadcast_id = post(client, **NOTICE).json["broadcastId"]
    now = datetime.now(UTC)
    with application.app_context():
        commit(pacing.remember_account, Account(10.0, daily_quota=10, sent_last_day=10))
        commit(broadcasts.hold, broadcast_id, reason="The quota is used up.", now=now)
        factories.put_sender_to_work()

    told = get(client, f"/{broadcast_id}").json

    assert (told["status"], told["reason"]) == ("paused", "The quota is used up.")
    assert told["resumeAt"] == f"{now + broadcasts.HOLD:%Y-%m-%dT%H:%M:%SZ}"
    assert 86400 < told["secondsLeft"] < 86400 + 120
    assert datetime.fromisoformat(told["expectedEnd"]) > now + timedelta(days=1)


def test_broadcasts_are_listed_newest_first(client: FlaskClient) -> None:
    ids = [post(client, title=f"Number {number}", contents="x").json["broadcastId"] for number in range(5)]

    page = get(client, limit=2).json
    seen = page["broadcasts"]
    while page["next"]:
        page = client.get(page["next"], headers=HEADERS).json
        seen += page["broadcasts"]

    assert [one["broadcastId"] for one in seen] == ids[::-1]
    told = get(client, f"/{ids[-1]}").json
    assert seen[0] == {name: told[name] for name in told if name != "feedback"}
    assert page.keys() == {"broadcasts", "next"}


def test_a_page_has_twenty_broadcasts_unless_something_else_is_asked_for(client: FlaskClient) -> None:
    for number in range(21):
        post(client, title=f"Number {number}", contents="x")

    assert len(get(client).json["broadcasts"]) == 20
    assert len(get(client, limit=100).json["broadcasts"]) == 21
    assert get(client, limit=21).json["next"] is None
    assert get(client, before=1).json == {"broadcasts": [], "next": None}


@pytest.mark.parametrize("name", ["limit", "before"])
@pytest.mark.parametrize("value", ["0", "-1", "x", "", "1.5", "\u00b2", "9" * 30, "9" * 5000])
def test_a_page_that_there_cannot_be_is_answered_400(client: FlaskClient, name: str, value: str) -> None:
    assert_problem(get(client, **{name: value}), 400, "InvalidQueryException")


def test_a_page_has_at_most_a_hundred_broadcasts(client: FlaskClient) -> None:
    assert_problem(get(client, limit=101), 400, "InvalidQueryException")


def test_broadcasts_are_listed_with_the_pin_only(client: FlaskClient) -> None:
    assert_problem(client.get(BROADCASTS), 401, "InvalidSecretPinException")


# Versions


def install(application: Flask, *versions: str) -> list[str]:
    """Register a clinic for each version, with an installation of it; none for an empty one. Return the addresses."""
    with application.app_context():
        emails = factories.register(len(versions))
        for email, version in zip(emails, versions, strict=True):
            if version:
                factories.install(email, version)
        return emails


@pytest.mark.parametrize(
    ("unknown", "wanted"), [({}, {0, 2}), ({"unknown": "Include"}, {0, 2}), ({"unknown": "exclude"}, {0})]
)
def test_a_broadcast_goes_to_the_versions_that_it_names(
    application: Flask, client: FlaskClient, unknown: dict[str, str], wanted: set[int]
) -> None:
    emails = install(application, "7.0.2", "7.0.3 (1)", "")
    mailer = SlowMailer()
    with sending(application, mailer):
        answer = post(client, **NOTICE, versions="<7.0.3.1", **unknown).json
        until(lambda: get(client, f"/{answer['broadcastId']}").json["status"] == "sent")

    assert mailer.sent == Counter(emails[number] for number in wanted)
    assert (answer["versions"], answer["recipients"]) == ("<7.0.3.1", len(wanted))


@pytest.mark.parametrize(
    "fields",
    [
        {"versions": ""},
        {"versions": "7.0.3"},
        {"versions": "<7.0.3" + " " * 200},
        {"versions": "<7.0.3", "unknown": "maybe"},
        {"unknown": "exclude"},
        {"versions": "<7.0.3 and more", "dry_run": "true"},
    ],
)
def test_versions_that_cannot_be_read_are_answered_400(
    application: Flask, client: FlaskClient, fields: dict[str, str]
) -> None:
    register(application, 1)

    assert_problem(post(client, **NOTICE, **fields), 400, "InvalidVersionRangeException")
    assert count(application, Broadcast) == 0


def test_a_bad_range_is_answered_with_a_good_one(client: FlaskClient) -> None:
    assert "<7.0.3.1" in post(client, **NOTICE, versions="7.0.3").json["detail"]


def test_a_dry_run_tells_who_would_get_it_and_sends_nothing(application: Flask, client: FlaskClient) -> None:
    install(application, "7.0.2", "7.0.3 (1)", "")

    response = post(client, **NOTICE, versions="<7.0.3.1", dry_run="true")

    assert response.status_code == 200
    assert response.json == {
        "dryRun": True,
        "versions": "<7.0.3.1",
        "recipients": 2,
        "inRange": 1,
        "unknown": 1,
        "outside": 1,
        "optedOut": 0,
        "suppressed": 0,
        "unconfirmed": 0,
        "seconds": None,
    }
    assert [count(application, model) for model in (Broadcast, BroadcastRequest, Delivery)] == [0, 0, 0]


@pytest.mark.parametrize("path", [BROADCASTS, "/api/registration/versions"])
def test_a_misspelt_parameter_is_answered_400(client: FlaskClient, path: str) -> None:
    response = client.get(path, headers=HEADERS, query_string={"limt": "5"})

    assert_problem(response, 400, "InvalidQueryException")
    assert "'limt', only `limit`" in response.json["detail"]


@pytest.mark.parametrize("path", [BROADCASTS, "/api/registration/versions"])
def test_a_body_that_was_left_in_a_get_means_nothing(client: FlaskClient, path: str) -> None:
    assert client.get(path, headers=HEADERS, data=NOTICE).status_code == 200


@pytest.mark.parametrize("name", ["test", "versions", "title", "dry_run"])
@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_field_that_is_there_twice_sends_nothing(
    application: Flask, client: FlaskClient, mailer: SlowMailer, content_type: str, name: str
) -> None:
    register(application, 1)
    fields = NOTICE | {name: ["<8", "<7"]}

    response = client.post(BROADCASTS, headers=HEADERS, data=fields, content_type=content_type)

    assert_problem(response, 400, "InvalidEmailMessageException")
    assert f"`{name}` is there 2 times" in response.json["detail"]
    assert count(application, Broadcast) == 0
    assert not mailer.sent


def test_a_field_in_the_body_and_in_the_query_string_sends_nothing(application: Flask, client: FlaskClient) -> None:
    response = client.post(BROADCASTS, headers=HEADERS, json=NOTICE, query_string={"title": "Update now"})

    assert_problem(response, 400, "InvalidEmailMessageException")
    assert count(application, Broadcast) == 0


@pytest.mark.parametrize(
    ("name", "value"), [("version", "<8"), ("dryRun", "true"), ("Title", "x"), ("", "x"), ("\ud800" * 50, "x")]
)
@pytest.mark.parametrize("form", ["json", "data", "query_string"])
def test_a_misspelt_field_sends_nothing(
    application: Flask, client: FlaskClient, mailer: SlowMailer, form: str, name: str, value: str
) -> None:
    register(application, 1)
    fields = NOTICE | {name.replace("\ud800", "\u20ac") if form != "json" else name: value}

    response = client.post(BROADCASTS, headers=HEADERS, **{form: fields})  # type: ignore[arg-type]

    assert response.status_code == 400
    assert "There is no field" in response.json["detail"]
    assert "`versions`" in response.json["detail"]
    assert len(response.json["detail"]) < 500
    assert count(application, Broadcast) == 0
    assert not mailer.sent


@pytest.mark.parametrize("name", ["version", "versions", "test", "dry_run", "html"])
def test_a_file_in_place_of_a_field_sends_nothing(
    application: Flask, client: FlaskClient, mailer: SlowMailer, name: str
) -> None:
    register(application, 1)

    response = client.post(BROADCASTS, headers=HEADERS, data=NOTICE | {name: (BytesIO(b"<8"), "file.txt")})

    assert response.status_code == 400
    assert name in response.json["detail"]
    assert count(application, Broadcast) == 0
    assert not mailer.sent


def test_a_part_without_a_name_sends_nothing(application: Flask, client: FlaskClient, mailer: SlowMailer) -> None:
    parts = [f'name="{name}"\r\n\r\n{value}' for name, value in NOTICE.items()] + ["\r\n\r\nx"]
    body = "".join(f"--b\r\nContent-Disposition: form-data; {part}\r\n" for part in parts) + "--b--\r\n"

    response = client.post(BROADCASTS, headers=HEADERS, data=body, content_type="multipart/form-data; boundary=b")

    assert response.status_code == 400
    assert count(application, Broadcast) == 0
    assert not mailer.sent


def test_a_test_without_an_address_says_which_field_is_empty(client: FlaskClient, mailer: SlowMailer) -> None:
    response = post(client, **NOTICE, test=" ")

    assert "`test`" in response.json["detail"]
    assert not mailer.sent


def test_a_dry_run_of_a_test_sends_no_test(client: FlaskClient, mailer: SlowMailer) -> None:
    assert post(client, **NOTICE, test="ann@example.org", dry_run="true").json["dryRun"] is True
    assert not mailer.sent


@pytest.fixture
def month(settings: dict[str, str]) -> None:
    settings["INSTALLATION_MAX_AGE_DAYS"] = "30"


def test_an_installation_that_was_not_seen_for_long_tells_no_version(
    month: None, application: Flask, client: FlaskClient
) -> None:
    with application.app_context():
        for days in (29, 31):
            (email,) = factories.register(1)
            factories.install(email, "7.0.3 (1)", last_seen_at=datetime.now(UTC) - timedelta(days=days))

    told = post(client, **NOTICE, versions="<7.0.3.1", dry_run="true").json

    assert (told["outside"], told["unknown"]) == (1, 1)


def test_what_became_of_the_accepted_messages_is_told_with_one_broadcast(
    application: Flask, client: FlaskClient
) -> None:
    with application.app_context():
        broadcast_id = filled(4)
        settle(claim(broadcast_id), *[ACCEPTED] * 4)
        first, second, *_ = lines(broadcast_id)
        commit(feedback.take, [ses_events.delivery(first.id), ses_events.bounce(second.id)], NOW)

    told = get(client, f"/{broadcast_id}").json["feedback"]

    assert told == {
        "accepted": 4,
        "delivered": 1,
        "delayed": 0,
        "softBounced": 0,
        "hardBounced": 1,
        "complained": 0,
        "rejected": 0,
    }
