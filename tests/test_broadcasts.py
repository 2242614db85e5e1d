"""Broadcasts: starting one once, steering it, and telling how far it has come."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import datetime, timedelta
from threading import Barrier, Event
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from registration import broadcasts, ledger, messages, monitoring
from registration.audiences import Audience
from registration.broadcasts import Work
from registration.db import commit_step, db
from registration.errors import IdempotencyKeyException, RepeatedBroadcastException, UnknownBroadcastException
from registration.models import (
    Broadcast,
    BroadcastRequest,
    BroadcastStatus,
    Registration,
    RegistrationStatus,
)
from registration.versions import parse_range

from . import factories
from .ledgers import (
    ACCEPTED,
    NOW,
    REFUSED,
    UNKNOWN,
    claim,
    commit,
    end,
    filled,
    lines,
    progress,
    settle,
    statuses,
)

pytestmark = pytest.mark.usefixtures("in_context")

LATER = NOW + timedelta(hours=1)
NEXT_DAY = NOW + broadcasts.REPEAT
MESSAGE = messages.compose("Update now", "There is a hole.")
OTHER = messages.compose("Update now", "There is another hole.")
RACERS = 6


def start(message: messages.Message = MESSAGE, now: datetime = NOW, **how: Any) -> int:
    return commit(broadcasts.start, message, now, **how)


def repeats(message: messages.Message = MESSAGE, now: datetime = NOW, **how: Any) -> int:
    """Return the broadcast that a request repeats."""
    with pytest.raises(RepeatedBroadcastException) as caught:
        start(message, now, **how)
    return caught.value.broadcast_id


def at_once(application: Flask, steps: list[Callable[[Session], Any]]) -> list[Any]:
    """Take steps at the same time, each in a transaction of its own; return results and errors."""
    barrier = Barrier(len(steps))

    def take(step: Callable[[Session], Any]) -> Any:
        with application.app_context():
            barrier.wait()
            try:
                return commit_step(step)
            except (RepeatedBroadcastException, IdempotencyKeyException) as error:
                return error

    with ThreadPoolExecutor(len(steps)) as pool:
        return list(pool.map(take, steps))


# Starting


def test_a_broadcast_to_nobody_has_ended_at_once() -> None:
    broadcast_id = factories.start_broadcast()

    assert commit(broadcasts.status_of, broadcast_id) is BroadcastStatus.SENT
    assert progress(broadcast_id).recipients == 0


def test_a_broadcast_keeps_what_it_says_to_the_letter() -> None:
    contents = "Ünïcode \U0001f6a8\r\n" + "x" * 90_000
    message = commit(broadcasts.message_of, factories.start_broadcast("Tïtle \U0001f6a8", contents))

    assert (message.subject, message.text) == ("Tïtle \U0001f6a8", contents)


def test_a_broadcast_keeps_the_html_that_somebody_wrote() -> None:
    message = messages.compose("Update now", "There is a hole.", "<p>Ünïcode \U0001f6a8 {{ x }}</p>" + "x" * 190_000)

    assert commit(broadcasts.message_of, start(message)) == message


def test_other_html_is_another_message_and_the_same_a_repetition() -> None:
    first, html = start(), messages.compose(MESSAGE.subject, MESSAGE.text, "<p>Hole</p>")

    second = start(html)

    assert second != first
    assert repeats(html) == second


def test_the_same_message_within_a_day_is_a_repetition_of_the_first() -> None:
    first = start()

    assert repeats(now=LATER) == first
    assert repeats(now=NEXT_DAY - timedelta(seconds=1), urgent=True) == first
    assert start(OTHER) != first


def test_the_same_message_after_a_day_is_a_new_broadcast_and_repeated_from_then_on() -> None:
    first = start()

    second = start(now=NEXT_DAY)

    assert second != first
    assert repeats(now=NEXT_DAY + timedelta(hours=23)) == second


@pytest.mark.parametrize("how", [{}, {"idempotency_key": "a"}])
def test_the_same_message_is_a_repetition_for_as_long_as_the_first_has_not_ended(how: dict[str, Any]) -> None:
    """A small quota or a pause makes a broadcast last for days, and everybody would get it twice."""
    factories.register(1)
    first = start(**how)
    commit(broadcasts.pause, first)

    assert repeats(now=NOW + timedelta(days=30), **how) == first
    end(first)
    assert start(now=NOW + timedelta(days=30), **how) != first


def test_one_that_has_not_ended_is_sent_again_all_the_same_when_that_is_asked_for() -> None:
    factories.register(1)
    first = start()

    second = start(now=LATER, resend=True)

    assert second != first
    assert repeats(now=LATER + timedelta(days=30)) == first
    assert start(now=LATER + broadcasts.RESEND, resend=True) not in (first, second)


def test_of_simultaneous_requests_each_key_names_its_own_broadcast_ever_after(application: Flask) -> None:
    factories.register(1)

    def ask(key: str) -> Callable[[Session], int]:
        return lambda session: broadcasts.start(session, MESSAGE, NOW, idempotency_key=key)

    first = 0
    for number in range(5):
        keys = [f"{number} a", f"{number} b"]
        started = at_once(application, [ask(key) for key in keys])

        assert len(set(started)) == 2
        assert [repeats(idempotency_key=key) for key in keys] == started
        first = first or min(started)
        assert repeats() == first


@pytest.mark.parametrize("how", [{"idempotency_key": "a"}, {"resend": True}])
@pytest.mark.parametrize("message", [MESSAGE, messages.compose("Update now", "There is a hole.", "<p>Update</p>")])
@pytest.mark.parametrize("whom", [Audience(), Audience(parse_range("<8"), include_unknown=False, seen_since=NOW)])
def test_the_first_is_remembered_until_it_has_ended_though_the_same_was_sent_again_on_purpose(
    how: dict[str, Any], message: messages.Message, whom: Audience
) -> None:
    (email,) = factories.register(1)
    factories.install(email, "7.0.3", last_seen_at=LATER)
    first = start(message, whom=whom)
    commit(broadcasts.cancel, first)  # which a sender has to end
    end(start(message, now=LATER, whom=whom, **how))

    later = LATER + 2 * broadcasts.REPEAT
    for now in (LATER, later):
        assert repeats(message, now=now, whom=replace(whom, seen_since=None)) == first
    other = start(OTHER, now=later, whom=whom)
    end(first)
    assert start(message, now=later, whom=whom) > other


def test_a_repetition_leaves_nothing_behind() -> None:
    start()
    repeats()

    assert commit(lambda session: session.execute(select(func.count(Broadcast.id))).scalar_one()) == 1
    assert commit(lambda session: session.execute(select(func.count(BroadcastRequest.name))).scalar_one()) == 1


def test_the_same_message_is_sent_again_when_that_is_asked_for() -> None:
    first = start()

    second = start(now=LATER, resend=True)

    assert second != first
    assert repeats(now=LATER + timedelta(hours=1)) == second


def test_asking_twice_for_the_same_message_again_sends_it_again_once() -> None:
    start()
    second = start(now=LATER, resend=True)

    assert repeats(now=LATER + timedelta(minutes=4), resend=True) == second
    assert start(now=LATER + broadcasts.RESEND, resend=True) != second


def test_the_same_idempotency_key_within_a_day_is_a_repetition_of_the_first() -> None:
    first = start(idempotency_key="a")

    assert repeats(now=LATER, idempotency_key="a") == first
    assert repeats(now=LATER, idempotency_key="a", resend=True) == first
    assert start(now=NEXT_DAY, idempotency_key="a") != first


def test_the_same_idempotency_key_with_another_message_is_an_error() -> None:
    start(idempotency_key="a")

    for _ in range(2):
        with pytest.raises(IdempotencyKeyException):
            start(OTHER, idempotency_key="a")
    assert start(OTHER, now=NEXT_DAY, idempotency_key="a")


def test_another_idempotency_key_says_that_it_is_another_broadcast() -> None:
    first = start(idempotency_key="a")
    second = start(now=LATER, idempotency_key="b")

    assert second != first
    assert repeats(now=LATER) == second
    assert repeats(now=LATER, idempotency_key="a") == first
    assert start(now=LATER, idempotency_key="A") not in (first, second)


@pytest.mark.parametrize("how", [{}, {"idempotency_key": "a"}, {"resend": True}])
@pytest.mark.parametrize("before", [None, NOW - timedelta(hours=1), NOW - timedelta(days=2)])
def test_of_simultaneous_requests_one_starts_a_broadcast_and_the_others_name_it(
    application: Flask, how: dict[str, Any], before: datetime | None
) -> None:
    factories.register(3)
    if before is not None:
        end(start(now=before, **how))
    expected = {None, NOW - timedelta(days=2)} | ({NOW - timedelta(hours=1)} if "resend" in how else set())

    results = at_once(application, [lambda session: broadcasts.start(session, MESSAGE, NOW, **how)] * RACERS)

    started = [result for result in results if isinstance(result, int)]
    repeated = {result.broadcast_id for result in results if not isinstance(result, int)}
    assert len(started) == (before in expected)
    assert len(repeated) == 1
    assert repeated == set(started) or not started


def test_simultaneous_requests_with_different_messages_under_one_key_start_one_broadcast(application: Flask) -> None:
    def start_with(message: messages.Message) -> Callable[[Session], int]:
        return lambda session: broadcasts.start(session, message, NOW, idempotency_key="a")

    results = at_once(application, [start_with(MESSAGE), start_with(OTHER)])

    assert sorted(type(result).__name__ for result in results) == ["IdempotencyKeyException", "int"]


# What there is to do


def work_of(broadcast_id: int, status: BroadcastStatus = BroadcastStatus.SENDING, *, filled: bool = False) -> Work:
    return Work(broadcast_id, status, filled)


def test_broadcasts_are_worked_on_urgent_ones_first_then_the_oldest_and_ended_ones_not_at_all() -> None:
    factories.start_broadcast()
    factories.register(1)
    ids = [factories.start_broadcast(), factories.start_broadcast()]
    urgent = start(OTHER, urgent=True)

    assert commit(broadcasts.find_work, NOW) == [work_of(urgent), *map(work_of, ids)]


def test_one_that_is_on_its_way_can_be_made_urgent_and_one_that_has_ended_cannot() -> None:
    ended = factories.start_broadcast()
    factories.register(1)
    first, second = (factories.start_broadcast() for _ in range(2))

    for broadcast_id in (ended, second):
        commit(broadcasts.hurry, broadcast_id)

    assert commit(broadcasts.find_work, NOW) == [work_of(second), work_of(first)]
    assert [progress(one).urgent for one in (ended, first, second)] == [False, False, True]
    with pytest.raises(UnknownBroadcastException):
        commit(broadcasts.hurry, 4711)


def test_a_broadcast_that_is_held_up_is_left_alone_until_its_time() -> None:
    broadcast_id = filled(1)
    commit(broadcasts.hold, broadcast_id, reason="Quota.", now=NOW)

    assert commit(broadcasts.find_work, NOW) == []
    held = progress(broadcast_id)
    assert (held.status, held.reason) == (BroadcastStatus.PAUSED, "Quota.")
    assert held.resume_at == NOW + broadcasts.HOLD
    factories.put_sender_to_work(NOW + broadcasts.HOLD)
    (work,) = commit(broadcasts.find_work, NOW + broadcasts.HOLD)
    assert work.broadcast_id == broadcast_id
    resumed = progress(broadcast_id, NOW + broadcasts.HOLD)
    assert (resumed.status, resumed.reason, resumed.resume_at) == (BroadcastStatus.SENDING, None, None)


def test_those_that_are_held_up_for_the_same_reason_go_on_together_the_urgent_one_first() -> None:
    routine, other = filled(1), filled(1)
    commit(broadcasts.hold, routine, reason="Quota.", now=NOW)
    urgent = factories.start_broadcast("Urgent")
    commit(broadcasts.hurry, urgent)
    later = NOW + timedelta(seconds=30)
    for broadcast_id, reason in ((other, "The message is to blame."), (urgent, "Quota.")):
        commit(broadcasts.hold, broadcast_id, reason=reason, now=later)

    going_on = [work.broadcast_id for work in commit(broadcasts.find_work, NOW + broadcasts.HOLD)]

    assert going_on == [urgent, routine]


def test_a_hold_lasts_though_the_clock_of_who_began_it_is_a_little_ahead() -> None:
    commit(broadcasts.hold, filled(1), reason="Quota.", now=NOW + timedelta(milliseconds=5))

    assert commit(broadcasts.find_work, NOW) == []


def test_a_hold_that_began_while_the_one_before_was_ended_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    if db.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    broadcast_id = filled(1)
    commit(broadcasts.hold, broadcast_id, reason="Quota.", now=NOW)
    later, move = NOW + broadcasts.HOLD, broadcasts._move

    def after_others(*arguments: Any, **named: Any) -> int:
        monkeypatch.setattr(broadcasts, "_move", move)
        commit(broadcasts.find_work, later)
        commit(broadcasts.hold, broadcast_id, reason="Suspended.", now=later)
        return move(*arguments, **named)

    monkeypatch.setattr(broadcasts, "_move", after_others)
    commit(broadcasts.find_work, later)

    assert progress(broadcast_id).reason == "Suspended."


def test_a_time_to_go_on_that_a_wrong_clock_has_left_is_over() -> None:
    broadcast_id = filled(1)
    commit(broadcasts.hold, broadcast_id, reason="Quota.", now=NOW + timedelta(hours=1))

    assert [work.broadcast_id for work in commit(broadcasts.find_work, NOW)] == [broadcast_id]


# Steering


def test_a_paused_broadcast_waits_until_somebody_resumes_it() -> None:
    factories.put_sender_to_work(NOW)
    broadcast_id = filled(1)

    for _ in range(2):
        commit(broadcasts.pause, broadcast_id)
    assert commit(broadcasts.find_work, NOW + timedelta(days=365)) == []
    assert progress(broadcast_id).reason == broadcasts.PAUSED_BY_HAND

    for _ in range(2):
        commit(broadcasts.resume, broadcast_id)
    assert commit(broadcasts.find_work, NOW) == [work_of(broadcast_id, filled=True)]
    assert progress(broadcast_id).reason is None


def test_a_broadcast_that_is_held_up_can_be_paused_and_then_does_not_go_on_by_itself() -> None:
    broadcast_id = filled(1)
    commit(broadcasts.hold, broadcast_id, reason="Quota.", now=NOW)

    commit(broadcasts.pause, broadcast_id)
    commit(broadcasts.hold, broadcast_id, reason="Quota.", now=NOW)

    assert commit(broadcasts.find_work, NOW + broadcasts.HOLD) == []
    assert progress(broadcast_id).reason == broadcasts.PAUSED_BY_HAND


def test_a_cancelled_broadcast_ends_when_what_is_left_is_marked() -> None:
    broadcast_id = filled(5)
    settle(claim(broadcast_id, 2), ACCEPTED, REFUSED)

    for _ in range(2):
        commit(broadcasts.cancel, broadcast_id)
    assert commit(broadcasts.find_work, NOW) == [work_of(broadcast_id, BroadcastStatus.CANCELLED, filled=True)]
    assert not commit(broadcasts.finish, broadcast_id, NOW)
    assert commit(broadcasts.cancel_rest, broadcast_id, NOW)
    assert not commit(broadcasts.cancel_rest, broadcast_id, NOW)
    assert commit(broadcasts.finish, broadcast_id, NOW)

    assert commit(broadcasts.find_work, NOW) == []
    end = progress(broadcast_id)
    assert (end.status, end.finished_at) == (BroadcastStatus.CANCELLED, NOW)
    assert (end.recipients, end.sent, end.failed, end.cancelled, end.remaining) == (5, 1, 1, 3, 0)


def test_what_is_being_sent_when_its_broadcast_is_cancelled_is_settled_as_it_went() -> None:
    broadcast_id = filled(3)
    batch = claim(broadcast_id, 2)

    commit(broadcasts.cancel, broadcast_id)
    commit(broadcasts.cancel_rest, broadcast_id, NOW)
    assert not commit(broadcasts.finish, broadcast_id, NOW)
    settle(batch, ACCEPTED, UNKNOWN)
    commit(ledger.expire, broadcast_id, NOW + ledger.LEASE + timedelta(seconds=1))
    commit(broadcasts.cancel_rest, broadcast_id, NOW)

    assert commit(broadcasts.finish, broadcast_id, NOW)
    assert statuses(broadcast_id) == {"sent": 1, "cancelled": 2}
    assert "No answer." in {line.reason for line in lines(broadcast_id)}


@pytest.mark.parametrize("step", [broadcasts.pause, broadcasts.resume, broadcasts.cancel])
def test_a_broadcast_that_has_ended_stays_as_it_is(step: Callable[..., None]) -> None:
    sent, cancelled = filled(1), factories.start_broadcast()
    settle(claim(sent), ACCEPTED)
    commit(broadcasts.finish, sent, NOW)
    commit(broadcasts.cancel, cancelled)

    commit(step, sent)
    commit(step, cancelled)

    assert progress(sent).status is BroadcastStatus.SENT
    assert progress(cancelled).status is BroadcastStatus.CANCELLED


def test_a_paused_broadcast_can_be_cancelled() -> None:
    broadcast_id = filled(1)
    commit(broadcasts.pause, broadcast_id)

    commit(broadcasts.cancel, broadcast_id)

    factories.put_sender_to_work(NOW)
    cancelled = progress(broadcast_id)
    assert (cancelled.status, cancelled.reason) == (BroadcastStatus.CANCELLED, None)


def test_only_a_cancelled_broadcast_has_anything_to_cancel() -> None:
    broadcast_id = filled(2)

    assert not commit(broadcasts.cancel_rest, broadcast_id, NOW)
    assert statuses(broadcast_id) == {"queued": 2}


def retry(broadcast_id: int, before: datetime = LATER) -> int:
    """Send again to everybody who did not get it; return in how many chunks."""
    chunks = 0
    while commit(broadcasts.retry, broadcast_id, before):
        chunks += 1
    return chunks


def test_a_retry_sends_to_those_who_failed_or_were_cancelled_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "ROWS_AT_ONCE", 2)
    broadcast_id = filled(8)
    settle(claim(broadcast_id, 4), ACCEPTED, REFUSED, REFUSED, REFUSED)
    commit(broadcasts.cancel, broadcast_id)
    while commit(broadcasts.cancel_rest, broadcast_id, NOW):
        pass
    commit(broadcasts.finish, broadcast_id, NOW)

    assert retry(broadcast_id) == 4

    again = progress(broadcast_id)
    assert (again.status, again.finished_at) == (BroadcastStatus.SENDING, None)
    assert (again.recipients, again.sent, again.remaining) == (8, 1, 7)
    assert [line.status.value for line in lines(broadcast_id)] == ["sent"] + ["queued"] * 7
    assert {(line.attempts, line.reason, line.settled_at) for line in lines(broadcast_id)[1:]} == {(0, None, None)}


def test_a_retry_takes_back_a_cancellation_that_no_sender_has_begun_to_carry_out() -> None:
    broadcast_id = filled(3)
    settle(claim(broadcast_id, 1), ACCEPTED)
    commit(broadcasts.cancel, broadcast_id)

    assert retry(broadcast_id) == 0

    assert progress(broadcast_id).status is BroadcastStatus.SENDING
    assert not commit(broadcasts.cancel_rest, broadcast_id, NOW)
    assert not commit(broadcasts.finish, broadcast_id, NOW)
    assert statuses(broadcast_id) == {"sent": 1, "queued": 2}


def test_a_retry_takes_back_a_cancellation_while_the_ledger_is_being_filled() -> None:
    factories.register(2)
    broadcast_id = factories.start_broadcast()
    commit(broadcasts.cancel, broadcast_id)

    retry(broadcast_id)

    assert commit(broadcasts.find_work, NOW) == [work_of(broadcast_id)]


def test_a_retry_of_a_cancelled_broadcast_that_has_ended_and_that_everybody_has_got_changes_nothing() -> None:
    broadcast_id = filled(1)
    settle(claim(broadcast_id), ACCEPTED)
    commit(broadcasts.cancel, broadcast_id)
    commit(broadcasts.finish, broadcast_id, NOW)

    assert retry(broadcast_id) == 0
    end = progress(broadcast_id)
    assert (end.status, end.finished_at) == (BroadcastStatus.CANCELLED, NOW)


def test_a_retry_when_everybody_has_got_it_changes_nothing() -> None:
    broadcast_id = filled(1)
    settle(claim(broadcast_id), ACCEPTED)
    commit(broadcasts.finish, broadcast_id, NOW)

    assert retry(broadcast_id) == 0
    assert progress(broadcast_id).status is BroadcastStatus.SENT


def test_a_retry_ends_although_they_fail_again_at_once() -> None:
    broadcast_id = filled(2)
    settle(claim(broadcast_id), REFUSED, REFUSED)
    asked_at = NOW + timedelta(seconds=1)

    assert commit(broadcasts.retry, broadcast_id, asked_at)
    batch = claim(broadcast_id)
    assert batch is not None
    commit(ledger.settle, batch, [REFUSED, REFUSED], asked_at + timedelta(milliseconds=1))

    assert not commit(broadcasts.retry, broadcast_id, asked_at)


def test_who_cancels_a_broadcast_in_the_middle_of_a_retry_has_the_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "ROWS_AT_ONCE", 2)
    broadcast_id = filled(4)
    settle(claim(broadcast_id), REFUSED, REFUSED, REFUSED, REFUSED)
    commit(broadcasts.finish, broadcast_id, NOW)

    assert commit(broadcasts.retry, broadcast_id, LATER)
    commit(broadcasts.cancel, broadcast_id)
    assert not commit(broadcasts.retry, broadcast_id, LATER, begun=True)

    assert progress(broadcast_id).status is BroadcastStatus.CANCELLED
    assert statuses(broadcast_id) == {"failed": 2, "queued": 2}


def test_a_retry_of_a_paused_broadcast_waits_for_it_to_be_resumed() -> None:
    broadcast_id = filled(2)
    settle(claim(broadcast_id, 1), REFUSED)
    commit(broadcasts.pause, broadcast_id)

    retry(broadcast_id)

    assert progress(broadcast_id).status is BroadcastStatus.PAUSED
    assert statuses(broadcast_id) == {"queued": 2}


def test_a_broadcast_that_is_sent_again_can_end_again() -> None:
    broadcast_id = filled(1)
    settle(claim(broadcast_id), REFUSED)
    commit(broadcasts.finish, broadcast_id, NOW)
    retry(broadcast_id)

    settle(claim(broadcast_id), ACCEPTED)

    assert commit(broadcasts.finish, broadcast_id, LATER)
    end = progress(broadcast_id)
    assert (end.status, end.finished_at, end.sent) == (BroadcastStatus.SENT, LATER, 1)


@pytest.mark.parametrize(
    "step",
    [
        broadcasts.status_of,
        broadcasts.pause,
        broadcasts.resume,
        broadcasts.cancel,
        lambda session, broadcast_id: broadcasts.retry(session, broadcast_id, NOW),
        lambda session, broadcast_id: monitoring.progress(session, broadcast_id, NOW),
    ],
)
def test_an_unknown_broadcast_is_an_error(step: Callable[..., Any]) -> None:
    with pytest.raises(UnknownBroadcastException):
        commit(step, 4711)


# Steering while a sender works


def ending(broadcast_id: int) -> Callable[[Session], Any]:
    return lambda session: broadcasts.finish(session, broadcast_id, NOW)


def retrying(broadcast_id: int) -> Callable[[Session], Any]:
    return lambda session: broadcasts.retry(session, broadcast_id, LATER)


@pytest.mark.parametrize("_turn", range(10))
def test_a_retry_is_not_overtaken_by_the_end_of_its_broadcast(application: Flask, _turn: int) -> None:
    broadcast_id = filled(3)
    settle(claim(broadcast_id), REFUSED, ACCEPTED, REFUSED)

    at_once(application, [ending(broadcast_id), retrying(broadcast_id), ending(broadcast_id)])

    assert progress(broadcast_id).status is BroadcastStatus.SENDING
    assert statuses(broadcast_id) == {"sent": 1, "queued": 2}


def test_the_end_of_a_broadcast_waits_for_a_retry_that_is_under_way(application: Flask) -> None:
    broadcast_id = filled(2)
    settle(claim(broadcast_id), REFUSED, ACCEPTED)
    queued, ended = Event(), Event()

    def end() -> bool:
        with application.app_context(), sessionmaker(db.engine).begin() as session:
            queued.wait(10)
            result = broadcasts.finish(session, broadcast_id, NOW)
        ended.set()
        return result

    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(end)
        with sessionmaker(db.engine).begin() as session:
            broadcasts.retry(session, broadcast_id, LATER)
            queued.set()
            ended.wait(0.3)
        assert not ending.result()

    assert progress(broadcast_id).status is BroadcastStatus.SENDING


def test_two_steps_for_a_broadcast_at_the_same_time_wait_for_each_other_in_one_order(application: Flask) -> None:
    """MariaDB comes to the row of who resumes by the index of statuses, and of a cancellation by the row's own id."""
    broadcast_id = filled(2)
    commit(broadcasts.pause, broadcast_id)

    def resume() -> None:
        with application.app_context():
            commit(broadcasts.resume, broadcast_id)

    with ThreadPoolExecutor(1) as pool:
        with sessionmaker(db.engine).begin() as session:
            broadcasts.retry(session, broadcast_id, LATER)
            resuming = pool.submit(resume)
            wait([resuming], 0.3)
            broadcasts.cancel(session, broadcast_id)
        resuming.result()

    assert progress(broadcast_id).status is BroadcastStatus.CANCELLED


def test_a_retry_takes_back_a_cancellation_that_senders_are_still_carrying_out(
    application: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "ROWS_AT_ONCE", 10)
    broadcast_id = filled(200)
    commit(broadcasts.cancel, broadcast_id)
    barrier = Barrier(3)

    def cancel_rest() -> None:
        with application.app_context():
            barrier.wait()
            while commit(broadcasts.cancel_rest, broadcast_id, NOW):
                pass

    def again() -> None:
        with application.app_context():
            barrier.wait()
            retry(broadcast_id)

    with ThreadPoolExecutor(3) as pool:
        for task in [pool.submit(cancel_rest), pool.submit(cancel_rest), pool.submit(again)]:
            task.result()
    retry(broadcast_id)

    assert not commit(broadcasts.cancel_rest, broadcast_id, NOW)
    assert statuses(broadcast_id) == {"queued": 200}
    assert progress(broadcast_id).status is BroadcastStatus.SENDING


def test_whatever_is_done_at_the_same_time_the_figures_add_up(application: Flask) -> None:
    broadcast_id = filled(150)
    done = Event()

    def send(number: int) -> None:
        with application.app_context():
            turn = 0
            while not done.is_set():
                turn += 1
                batch = claim(broadcast_id, 7, lease=f"{number}-{turn}")
                if batch is not None:
                    settle(batch, *([ACCEPTED, REFUSED] * 4)[: len(batch.recipients)])
                commit(broadcasts.cancel_rest, broadcast_id, NOW)
                commit(broadcasts.finish, broadcast_id, NOW)

    def steer() -> None:
        with application.app_context():
            for step in (broadcasts.pause, broadcasts.resume, broadcasts.cancel) * 5:
                commit(step, broadcast_id)
                retry(broadcast_id, NOW)

    with ThreadPoolExecutor(4) as pool:
        senders = [pool.submit(send, number) for number in range(2)]
        steering = [pool.submit(steer) for _ in range(2)]
        wait(steering)
        done.set()
    assert [task.exception() for task in [*steering, *senders]] == [None] * 4
    retry(broadcast_id)
    while (batch := claim(broadcast_id)) is not None:
        settle(batch, *[ACCEPTED] * len(batch.recipients))
    commit(broadcasts.finish, broadcast_id, NOW)

    end = progress(broadcast_id)
    assert end.finished_at is not None
    assert end.recipients == end.sent == 150


# Telling


def test_a_broadcast_ends_when_nothing_is_left_and_the_figures_add_up() -> None:
    broadcast_id = filled(3)
    assert not commit(broadcasts.finish, broadcast_id, NOW)
    settle(claim(broadcast_id), ACCEPTED, REFUSED, ACCEPTED)

    assert commit(broadcasts.finish, broadcast_id, NOW)
    assert not commit(broadcasts.finish, broadcast_id, NOW)

    end = progress(broadcast_id)
    assert (end.status, end.sent, end.failed) == (BroadcastStatus.SENT, 2, 1)
    assert end.recipients == end.sent + end.failed + end.skipped + end.cancelled == 3
    assert (end.remaining, end.rate, end.expected_end) == (0, 0.0, None)


def test_a_broadcast_ends_while_another_goes_on() -> None:
    first, second = filled(1), filled(1)
    settle(claim(first), ACCEPTED)

    assert not commit(broadcasts.finish, second, NOW)
    assert commit(broadcasts.finish, first, NOW)


def test_a_cancelled_broadcast_does_not_end_before_its_ledger_is_filled() -> None:
    factories.register(1)
    broadcast_id = factories.start_broadcast()
    commit(broadcasts.cancel, broadcast_id)

    assert not commit(broadcasts.finish, broadcast_id, NOW)


def test_a_cancelled_broadcast_ends_once() -> None:
    broadcast_id = filled(1)
    commit(broadcasts.cancel, broadcast_id)
    commit(broadcasts.cancel_rest, broadcast_id, NOW)

    assert commit(broadcasts.finish, broadcast_id, NOW)
    assert not commit(broadcasts.finish, broadcast_id, LATER)
    assert progress(broadcast_id).finished_at == NOW


def test_a_broadcast_does_not_end_before_its_ledger_is_filled() -> None:
    factories.register(1)
    broadcast_id = factories.start_broadcast()

    assert not commit(broadcasts.finish, broadcast_id, NOW)


# Versions

BELOW = Audience(parse_range("<7.0.3.1"))


def test_the_versions_of_a_broadcast_are_told() -> None:
    factories.register(1)

    assert progress(start(whom=BELOW)).versions == "<7.0.3.1"
    assert progress(start(OTHER)).versions is None


def test_the_same_message_to_other_versions_is_another_broadcast() -> None:
    first, ranged = start(), start(whom=BELOW)

    assert repeats() == first
    assert repeats(whom=Audience(parse_range("< 7.0.3 (1)"))) == ranged
    assert start(whom=Audience(BELOW.versions, include_unknown=False)) > ranged
    assert start(whom=Audience(parse_range("<7.0.3.2"))) > ranged


def test_a_key_stands_for_its_versions_too() -> None:
    start(whom=BELOW, idempotency_key="a")

    with pytest.raises(IdempotencyKeyException):
        start(idempotency_key="a")


@pytest.mark.parametrize(
    "contents",
    [
        "There is\na hole.\n",
        "\nThere is \t\r\na hole. \t\r\n\n",
        "There is\r\r\na hole.",
        "There is\n\ra hole.",
        "\ufeffThere is\na hole.",
        " \ufeff\ufeff\nThere is\ufeff\r\na hole.\n\ufeff\n",
    ],
)
def test_what_a_form_or_a_file_does_to_the_ends_of_lines_makes_no_other_message(contents: str) -> None:
    first = start(messages.compose("Update now", "There is\na hole."))

    with pytest.raises(RepeatedBroadcastException) as caught:
        start(messages.compose("Update now", contents))

    assert caught.value.broadcast_id == first
    for other in ("There is a hole.", "There is\n\na hole.", "There is\r\n\r\n\r\na hole."):
        start(messages.compose("Update now", other))


def test_a_paused_broadcast_is_filled_with_who_was_there_at_its_start() -> None:
    factories.register(3)
    (late,) = factories.register(status=RegistrationStatus.OPTED_OUT)
    broadcast_id = factories.start_broadcast()
    commit(broadcasts.pause, broadcast_id)

    assert commit(broadcasts.find_work, NOW) == [work_of(broadcast_id, BroadcastStatus.PAUSED)]
    while commit(ledger.fill, broadcast_id):
        pass
    db.session.execute(update(Registration).where(Registration.email == late).values(status=RegistrationStatus.ACTIVE))
    db.session.commit()
    commit(broadcasts.resume, broadcast_id)

    assert commit(broadcasts.find_work, NOW) == [work_of(broadcast_id, filled=True)]
    assert progress(broadcast_id).recipients == 3


def test_broadcasts_are_listed_newest_first_a_page_at_a_time() -> None:
    ids = [factories.start_broadcast() for _ in range(5)]

    first = commit(broadcasts.page, limit=3)
    second = commit(broadcasts.page, before=first[-1], limit=3)

    assert [*first, *second] == ids[::-1]


def test_the_end_of_a_cancelled_broadcast_ends_no_other() -> None:
    broadcast_id, other = filled(1), filled(1)
    for each in (broadcast_id, other):
        commit(broadcasts.cancel, each)
    commit(broadcasts.cancel_rest, broadcast_id, NOW)

    assert commit(broadcasts.finish, broadcast_id, NOW)

    assert progress(other).finished_at is None
    assert [work.broadcast_id for work in commit(broadcasts.find_work, NOW)] == [other]
