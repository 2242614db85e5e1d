"""The loop that sends, against the outbox and against mailers that fail in every way."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from registration import broadcasts, bulk_turns, flow, ledger, monitoring, pacing, trouble
from registration import sender as sender_module
from registration.bulk_turns import BulkTurn
from registration.clock import Clock
from registration.db import db
from registration.housekeeping import Timetable
from registration.mailers import Account, Outcome, Recipient, Verdict
from registration.messages import Message
from registration.models import (
    Broadcast,
    BroadcastRequest,
    BroadcastStatus,
    Delivery,
    DeliveryStatus,
    Pace,
    Registration,
    RegistrationStatus,
)
from registration.monitoring import Progress
from registration.sender import Call, Sender

from . import factories, failing, ledgers
from .ledgers import commit
from .running import running
from .stepping import step, work
from .waiting import until

pytestmark = pytest.mark.usefixtures("in_context")

ACCEPTED = Outcome(Verdict.ACCEPTED, message_id="0100-1")


class ScriptedMailer:
    """Answers as a script says, and accepts everything when the script has ended."""

    def __init__(self, rate: float | None = math.inf) -> None:
        self.rate = rate
        self.largest = 2
        self.script: list[Callable[[Sequence[Recipient]], list[Outcome]]] = []
        self.sent: list[str] = []
        self.times: list[float] = []

    def send(self, message: Message, recipients: Sequence[Recipient]) -> list[Outcome]:
        self.times.append(time.monotonic())
        outcomes = self.script.pop(0)(recipients) if self.script else [ACCEPTED] * len(recipients)
        for recipient, outcome in zip(recipients, outcomes, strict=True):
            if outcome.verdict is Verdict.ACCEPTED:
                self.sent.append(recipient.address)
        return outcomes

    def account(self) -> Account | None:
        return None if self.rate is None else Account(self.rate)

    def largest_batch(self, message: Message) -> int:
        return self.largest


@pytest.fixture
def mailer() -> ScriptedMailer:
    return ScriptedMailer()


@pytest.fixture
def scripted(sender: Sender, mailer: ScriptedMailer) -> Sender:
    return replace(sender, mailer=mailer)


def progress(broadcast_id: int) -> Progress:
    db.session.rollback()
    return monitoring.progress(db.session(), broadcast_id, datetime.now(UTC))


class EndLate:
    """Accepts everything, but does not end before it may."""

    def __init__(self) -> None:
        self.may_end = threading.Event()

    def __call__(self, recipients: Sequence[Recipient]) -> list[Outcome]:
        assert self.may_end.wait(60)
        return [ACCEPTED] * len(recipients)


def always(verdict: Verdict, reason: str = "Because.") -> Callable[[Sequence[Recipient]], list[Outcome]]:
    return lambda recipients: [Outcome(verdict, reason=reason)] * len(recipients)


def test_everybody_gets_the_message_once(sender: Sender, tmp_path: Path) -> None:
    emails = factories.register(120)
    broadcast_id = factories.start_broadcast()

    work(sender)

    files = sorted(file.name.partition("-")[2] for file in (tmp_path / "outbox").glob("*.eml"))
    assert files == sorted(f"{email}.eml" for email in emails)
    figures = progress(broadcast_id)
    assert (figures.status, figures.recipients, figures.sent) == (BroadcastStatus.SENT, 120, 120)


def test_two_broadcasts_are_both_sent_the_older_first(scripted: Sender, mailer: ScriptedMailer) -> None:
    first = factories.register(4)
    ids = [factories.start_broadcast("One"), factories.start_broadcast("Two")]

    work(scripted)

    assert [progress(broadcast_id).sent for broadcast_id in ids] == [4, 4]
    assert mailer.sent == first + first


def test_a_throttled_batch_is_sent_later_and_everybody_backs_off(scripted: Sender, mailer: ScriptedMailer) -> None:
    factories.register(2)
    broadcast_id = factories.start_broadcast()
    mailer.script = [always(Verdict.THROTTLED)]

    work(scripted)

    assert progress(broadcast_id).sent == 2
    assert mailer.times[1] - mailer.times[0] >= pacing.REST_SECONDS * 0.9
    assert db.session.execute(select(Delivery.attempts)).scalars().all() == [1, 1]


def test_what_holds_for_everybody_pauses_the_broadcast_with_the_reason_and_fails_nobody(
    scripted: Sender, mailer: ScriptedMailer
) -> None:
    factories.register(3)
    broadcast_id = factories.start_broadcast()
    mailer.script = [always(Verdict.HELD, "Sending is paused in Amazon SES.")]

    work(scripted)

    figures = progress(broadcast_id)
    assert (figures.status, figures.reason) == (BroadcastStatus.PAUSED, "Sending is paused in Amazon SES.")
    assert (figures.failed, figures.remaining) == (0, 3)


def test_a_paused_broadcast_goes_on_by_itself(scripted: Sender, mailer: ScriptedMailer) -> None:
    factories.register(3)
    broadcast_id = factories.start_broadcast()
    mailer.script = [always(Verdict.HELD)]
    work(scripted)

    later = replace(scripted, now=lambda: datetime.now(UTC) + broadcasts.HOLD + timedelta(seconds=1))
    work(later)

    assert progress(broadcast_id).status is BroadcastStatus.SENT
    assert len(mailer.sent) == 3


def test_a_paused_broadcast_does_not_hold_the_next_one(scripted: Sender, mailer: ScriptedMailer) -> None:
    factories.register(1)
    stuck, free = factories.start_broadcast("One"), factories.start_broadcast("Two")
    mailer.script = [always(Verdict.HELD)]

    work(scripted)

    assert (progress(stuck).status, progress(free).status) == (BroadcastStatus.PAUSED, BroadcastStatus.SENT)


def test_a_refused_address_fails_alone(scripted: Sender, mailer: ScriptedMailer) -> None:
    factories.register(2)
    broadcast_id = factories.start_broadcast()
    mailer.script = [lambda _: [Outcome(Verdict.REFUSED, reason="No."), ACCEPTED]]

    work(scripted)

    figures = progress(broadcast_id)
    assert (figures.status, figures.sent, figures.failed) == (BroadcastStatus.SENT, 1, 1)


def test_nobody_is_lost_when_the_answer_is(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "GRACE_SECONDS", 0.0)
    factories.register(2)
    broadcast_id = factories.start_broadcast()
    mailer.script = [always(Verdict.UNKNOWN)]
    work(scripted)
    assert (progress(broadcast_id).status, mailer.sent) == (BroadcastStatus.SENDING, [])

    work(replace(scripted, now=lambda: datetime.now(UTC) + ledger.LEASE + timedelta(seconds=5)))

    assert progress(broadcast_id).sent == len(mailer.sent) == 2


def test_a_call_that_fails_as_nobody_foresaw_is_made_again_for_each_alone_and_not_for_ever(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(trouble, "LONGEST_REST_SECONDS", 0.0)
    culprit, _ = factories.register(2)
    broadcast_id = factories.start_broadcast()
    calls: list[int] = []

    def fail(recipients: Sequence[Recipient]) -> list[Outcome]:
        calls.append(len(recipients))
        if culprit in [recipient.address for recipient in recipients]:
            raise KeyError("Status")
        return always(Verdict.ACCEPTED)(recipients)

    mailer.script = [fail] * 20
    for turn in range(ledger.MOST_ATTEMPTS + 2):
        later = (ledger.LEASE + timedelta(seconds=5)) * turn
        work(replace(scripted, now=lambda later=later: datetime.now(UTC) + later))

    figures = progress(broadcast_id)
    assert (figures.status, figures.sent, figures.failed) == (BroadcastStatus.SENT, 1, 1)
    assert calls == [2, *[1] * ledger.MOST_ATTEMPTS]


def test_while_there_are_retries_the_sender_makes_as_many_calls_as_those_of_one_recipient_need(
    scripted: Sender, mailer: ScriptedMailer
) -> None:
    mailer.rate, mailer.largest = 1000.0, 50
    broadcast_id = ledgers.filled(3)
    scripted.look()
    assert not scripted._flow.is_apart
    db.session.execute(update(Delivery).values(attempts=1))
    db.session.commit()

    (call,) = scripted._claim_lot()

    assert (call.broadcast_id, len(call.batch.recipients)) == (broadcast_id, 1)
    assert scripted._flow.is_apart


def test_nobody_who_opted_out_meanwhile_is_mailed(scripted: Sender, mailer: ScriptedMailer) -> None:
    factories.register(40)
    broadcast_id = factories.start_broadcast()
    limited = replace(scripted, rate_limit=20.0)
    step(limited)
    sent = len(mailer.sent)
    db.session.execute(update(Registration).values(status=RegistrationStatus.OPTED_OUT))
    db.session.commit()

    work(limited)

    figures = progress(broadcast_id)
    assert (figures.status, figures.sent, figures.skipped) == (BroadcastStatus.SENT, sent, 40 - sent)
    assert len(mailer.sent) == sent < 40


def test_the_operators_limit_and_the_services_rate_are_both_kept(scripted: Sender, mailer: ScriptedMailer) -> None:
    factories.register(5)
    factories.start_broadcast()
    mailer.rate = 1000.0
    limited = replace(scripted, rate_limit=10.0)

    work(limited)

    assert mailer.times[-1] - mailer.times[0] >= 0.35
    assert len(mailer.sent) == 5


def test_the_services_rate_is_kept_when_the_operator_sets_no_limit(scripted: Sender, mailer: ScriptedMailer) -> None:
    factories.register(5)
    factories.start_broadcast()
    mailer.rate = 10.0

    work(scripted)

    assert mailer.times[-1] - mailer.times[0] >= 0.35


def test_an_unknown_account_is_taken_to_be_the_smallest_and_asked_for_again(
    scripted: Sender, mailer: ScriptedMailer
) -> None:
    mailer.rate = None
    factories.register(1)
    factories.start_broadcast()
    scripted.look()
    assert scripted._flow.rate == pytest.approx(pacing.SLOWEST_RATE * pacing.HEADROOM)
    mailer.rate = 14.0

    later = replace(scripted, now=lambda: datetime.now(UTC) + timedelta(seconds=pacing.UNKNOWN_SECONDS + 1))
    later.look()

    assert later._flow.rate == pytest.approx(14.0 * pacing.HEADROOM)


def test_each_sender_asks_for_the_account_when_it_starts_and_one_for_all_after_that(
    scripted: Sender, mailer: ScriptedMailer
) -> None:
    factories.register(1)
    factories.start_broadcast()
    mailer.rate = 14.0
    scripted.look()
    mailer.rate = 7.0
    other = replace(scripted)
    begun = datetime.now(UTC)
    other.look()
    assert commit(pacing.asked_at) >= begun
    mailer.rate = 1.0

    for sender in (scripted, other):
        sender._timetable._next["account"] = 0.0
        sender.look()

        assert sender._flow.rate == pytest.approx(7.0 * pacing.HEADROOM)


def test_threads_that_cannot_be_started_are_tried_again(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    factories.register(1)
    factories.start_broadcast()
    failures, start = [RuntimeError("can't start new thread")] * 2, threading.Thread.start

    def fail_twice(thread: threading.Thread) -> None:
        if failures and thread.name == "claims":
            raise failures.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_twice)
    monkeypatch.setattr(sender_module, "TROUBLE_SECONDS", 0.01)
    with running(scripted):
        until(lambda: mailer.sent)

    assert (len(mailer.sent), failures) == (1, [])


def test_bulk_calls_that_are_mostly_refused_give_way_to_single_ones(scripted: Sender, mailer: ScriptedMailer) -> None:
    factories.register(20)
    broadcast_id = factories.start_broadcast()
    sizes: list[int] = []

    def refuse_bulk(recipients: Sequence[Recipient]) -> list[Outcome]:
        sizes.append(len(recipients))
        return [Outcome(Verdict.THROTTLED) if len(recipients) > 1 else ACCEPTED] * len(recipients)

    mailer.script = [refuse_bulk] * 4_000

    work(scripted)

    assert progress(broadcast_id).sent == 20
    assert sizes[-1] == 1


@pytest.fixture
def scarce(scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch) -> Sender:
    """A sender with 300 recipients to send to at 100 a second, of an account that may make one bulk call a second."""
    monkeypatch.setattr(flow, "MOST_SINGLE_CALLS", 50.0)
    mailer.rate, mailer.largest = 100.0, 50
    factories.register(300)
    factories.start_broadcast()
    commit(bulk_turns.note_scarce, now=datetime.now(UTC).timestamp())
    return scripted


def test_where_bulk_calls_are_scarce_one_a_second_goes_beside_calls_of_one(
    scarce: Sender, mailer: ScriptedMailer
) -> None:
    calls: list[tuple[float, int]] = []

    def note(recipients: Sequence[Recipient]) -> list[Outcome]:
        calls.append((time.monotonic(), len(recipients)))
        return [ACCEPTED] * len(recipients)

    mailer.script = [note] * 300
    with running(scarce):
        until(lambda: len(mailer.sent) == 300)

    assert len(set(mailer.sent)) == 300
    bulk = [at for at, size in calls if size > 1]
    assert {size for _, size in calls} >= {1, 50}
    assert all(later - at >= 0.95 for at, later in pairwise(bulk))
    busiest = max(sum(size for when, size in calls if at <= when < at + 1) for at, _ in calls)
    assert busiest <= 115


@pytest.mark.parametrize(
    ("verdict", "is_over"), [(Verdict.ACCEPTED, True), (Verdict.THROTTLED, False), (Verdict.UNKNOWN, False)]
)
def test_a_probe_ends_the_scarcity_if_it_is_let_through(
    scarce: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch, verdict: Verdict, is_over: bool
) -> None:
    commit(ledger.fill, 1)
    now = datetime.now(UTC)
    scarce.now = lambda: now
    scarce.look()
    turn_at = scarce._clock.time().timestamp() + 0.6
    db.session.execute(update(Pace).values(bulk_free_at=turn_at, bulk_probe_at=turn_at - 1))
    db.session.commit()
    mailer.script = [always(verdict)]
    monkeypatch.setattr(sender_module, "LATE_SCARCE_SECONDS", 60.0)

    (call,) = scarce._claim_lot()
    scarce._carry_out(call)

    assert (call.bulk_turn, len(call.batch.recipients)) == (BulkTurn.PROBE, 50)
    db.session.rollback()
    assert bulk_turns.are_scarce(db.session()) is not is_over
    assert scarce._flow.are_bulk_calls_scarce is not is_over


@pytest.mark.parametrize(("recipients", "turn"), [(300, BulkTurn.REGULAR), (300, BulkTurn.PROBE), (1, None)])
def test_where_the_database_is_slow_scarce_bulk_calls_and_the_last_recipient_leave_after_the_commit(
    scarce: Sender, recipients: int, turn: BulkTurn | None
) -> None:
    """What is due before is late, given back, and claimed again for ever."""
    scarce.look()
    scarce._flow.note_claim(0.7)
    if turn is BulkTurn.PROBE:
        now = scarce._clock.time().timestamp()
        commit(lambda session: session.execute(update(Pace).values(bulk_free_at=now + 1.2, bulk_probe_at=now - 1)))
    if recipients == 1:
        first = db.session.execute(select(func.min(Delivery.id))).scalar_one()
        db.session.execute(delete(Delivery).where(Delivery.id > first))
        db.session.commit()
    begun = time.monotonic()

    (call,) = scarce._claim_lot()

    assert (call.bulk_turn, len(call.batch.recipients)) == (turn, min(recipients, 50))
    assert call.due_at >= begun + 0.7


def test_no_probe_follows_a_scarce_bulk_call_that_was_given_back(scarce: Sender) -> None:
    commit(ledger.fill, 1)
    scarce.look()
    now = datetime.now(UTC).timestamp()
    (call,) = scarce._claim_lot()
    commit(lambda session: session.execute(update(Pace).values(bulk_probe_at=now)))
    scarce.stop()

    scarce._carry_out(call)

    assert call.bulk_turn is BulkTurn.REGULAR
    assert commit(bulk_turns.find, now=now + 0.5) is None
    assert {line.status for line in ledgers.lines(call.broadcast_id)} == {DeliveryStatus.QUEUED}


def test_nobody_is_held_claimed_when_others_come_first_just_then(
    scripted: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who opts out meanwhile would be mailed all the same."""
    broadcast_id = ledgers.filled(3)
    scripted.look()
    free_in = pacing.free_in

    def then_others_reserve(session: Session, *, rate: float, now: float) -> float:
        found = free_in(session, rate=rate, now=now)
        commit(pacing.back_off, 10.0, now=now)
        return found

    monkeypatch.setattr(pacing, "free_in", then_others_reserve)

    assert not scripted._claim_ahead()
    assert scripted._has_more
    assert {(line.status, line.attempts) for line in ledgers.lines(broadcast_id)} == {(DeliveryStatus.QUEUED, 0)}


def test_a_turn_for_which_nothing_is_queued_is_left_to_others(scarce: Sender) -> None:
    turn_at = commit(lambda session: session.execute(select(Pace.bulk_free_at)).scalar_one())
    scarce.look()
    db.session.execute(update(Delivery).values(status="sent"))
    db.session.commit()

    assert scarce._claim_lot() == []
    assert commit(lambda session: session.execute(select(Pace.bulk_free_at)).scalar_one()) == turn_at


@pytest.mark.parametrize("left", [0, 1])
def test_a_turn_for_which_too_few_are_left_is_not_taken(
    scarce: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    monkeypatch.setattr(sender_module, "LATE_SECONDS", 60.0)
    commit(ledger.fill, 1)
    turn_at = commit(lambda session: session.execute(select(Pace.bulk_free_at)).scalar_one())
    scarce.look()
    first = db.session.execute(select(func.min(Delivery.id))).scalar_one()
    staying = select(Delivery.registration_id).where(Delivery.id < first + left)
    opted_out = update(Registration).where(Registration.id.not_in(staying))
    db.session.execute(opted_out.values(status=RegistrationStatus.OPTED_OUT))
    db.session.execute(update(Delivery).where(Delivery.id >= first + 50).values(status="sent"))
    db.session.commit()

    (call,) = scarce._claim_lot()
    scarce._carry_out(call)

    assert len(mailer.sent) == left
    assert commit(lambda session: session.execute(select(Pace.bulk_free_at)).scalar_one()) == turn_at


def test_a_deadlock_over_outcomes_is_tried_again_at_once(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    factories.register(1)
    broadcast_id = factories.start_broadcast()
    left = failing.at_first(monkeypatch, ledger, "settle", failing.deadlock())
    monkeypatch.setattr(sender_module, "TROUBLE_SECONDS", math.inf)
    work(scripted)

    assert (progress(broadcast_id).sent, left) == (1, [])


def test_a_refused_bulk_call_slows_nothing_down_where_they_are_scarce(scarce: Sender, mailer: ScriptedMailer) -> None:
    sizes: list[int] = []

    def refuse_bulk(recipients: Sequence[Recipient]) -> list[Outcome]:
        sizes.append(len(recipients))
        return [Outcome(Verdict.THROTTLED) if len(recipients) > 1 else ACCEPTED] * len(recipients)

    mailer.script = [refuse_bulk] * 400
    with running(scarce):
        until(lambda: len(mailer.sent) == 300)

    db.session.rollback()
    assert db.session.execute(select(Pace.throttled_at)).scalar_one() == 0
    assert [size for size in sizes if size > 1]
    assert sorted(set(mailer.sent)) == sorted(mailer.sent)


def test_outcomes_that_come_while_others_are_written_down_share_the_next_transaction(
    scripted: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    factories.register(6)
    broadcast_id = factories.start_broadcast()
    commit(ledger.fill, broadcast_id)
    one, two = (ledgers.claim(broadcast_id, 3, lease=lease) for lease in ("one", "two"))
    parts = [ledger.Batch(batch.lease, batch.recipients[at : at + 1]) for batch in (one, two) for at in range(3)]
    written: list[list[int]] = []
    may_go_on, settle = threading.Event(), ledger.settle

    def settle_slowly(session: Session, batch: ledger.Batch, outcomes: Sequence[Outcome], now: datetime) -> None:
        may_go_on.wait(20)
        written.append([recipient.delivery_id for recipient in batch.recipients])
        settle(session, batch, outcomes, now)

    monkeypatch.setattr(ledger, "settle", settle_slowly)
    threads = [threading.Thread(target=scripted._settle, args=(part, [ACCEPTED])) for part in parts]
    for number, thread in enumerate(threads):
        thread.start()
        until(lambda number=number: scripted._settled._has_leader and len(scripted._settled._waiting) == number)  # type: ignore
    may_go_on.set()
    for thread in threads:
        thread.join()

    assert progress(broadcast_id).sent == 6
    first = [recipient.delivery_id for recipient in one.recipients]
    assert written == [first[:1], first[1:], [recipient.delivery_id for recipient in two.recipients]]


def test_stopping_finishes_the_batch_in_hand_and_leaves_the_rest(scripted: Sender, mailer: ScriptedMailer) -> None:
    factories.register(6)
    broadcast_id = factories.start_broadcast()

    def stop_while_sending(recipients: Sequence[Recipient]) -> list[Outcome]:
        scripted.stop()
        return [ACCEPTED] * len(recipients)

    mailer.script = [stop_while_sending]
    scripted.run()

    figures = progress(broadcast_id)
    assert (figures.sent, figures.remaining) == (2, 4)
    db.session.rollback()
    assert db.session.execute(select(Delivery.status).where(Delivery.status == "sending")).all() == []


def test_stopping_while_waiting_for_the_pace_gives_the_batch_back(scripted: Sender, mailer: ScriptedMailer) -> None:
    factories.register(3)
    broadcast_id = factories.start_broadcast()
    with running(replace(scripted, rate_limit=0.1)):
        until(lambda: mailer.sent)
        time.sleep(0.2)

    figures = progress(broadcast_id)
    assert (figures.sent, figures.remaining) == (1, 2)
    db.session.rollback()
    assert set(db.session.execute(select(Delivery.lease)).scalars()) == {None}


def test_what_waits_is_given_back_before_calls_in_flight_and_a_look_have_ended(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    broadcast_id = ledgers.filled(12)
    mailer.largest = 1
    monkeypatch.setattr(flow, "MOST_IN_FLIGHT", 4)
    slow = replace(scripted, rate_limit=100.0)
    answered, has_looked, look = threading.Event(), threading.Event(), slow.look

    def answer_late(recipients: Sequence[Recipient]) -> list[Outcome]:
        answered.wait(30)
        return [ACCEPTED] * len(recipients)

    def look_once() -> bool:
        if has_looked.is_set():
            answered.wait(30)
        has_looked.set()
        return look()

    mailer.script = [answer_late] * 12
    monkeypatch.setattr(slow, "look", look_once)
    with running(slow):
        try:
            until(lambda: len(mailer.times) == 4 and ledgers.statuses(broadcast_id) == {"sending": 12})
            slow.stop()
            until(lambda: ledgers.statuses(broadcast_id) == {"sending": 4, "queued": 8})
        finally:
            answered.set()


def test_outcomes_survive_a_database_that_is_away_for_a_moment(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    factories.register(1)
    broadcast_id = factories.start_broadcast()
    monkeypatch.setattr(sender_module, "TROUBLE_SECONDS", 0.01)
    gone = OperationalError("", {}, Exception("gone"))
    left = failing.at_first(monkeypatch, ledger, "settle", gone, gone)

    work(scripted)

    assert progress(broadcast_id).sent == len(mailer.sent) == 1
    assert left == []
    told = [record for record in caplog.records if record.message == "outcomes could not be written down yet"]
    assert [(record.error, record.code) for record in told] == [("OperationalError", "gone")] * 2


def gone(*_: object) -> None:
    raise OperationalError("", {}, Exception("gone"))


def test_a_sender_that_is_to_end_does_not_hold_outcomes_for_ever(
    scripted: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "SETTLE_SECONDS", 0.02)
    monkeypatch.setattr(sender_module, "TROUBLE_SECONDS", 0.01)
    monkeypatch.setattr(ledger, "settle", gone)
    scripted.stop()

    with pytest.raises(OperationalError):
        scripted._settle(ledger.Batch("one", []), [])


def test_a_sender_that_goes_on_later_holds_outcomes_for_as_long_as_it_takes(
    scripted: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "SETTLE_SECONDS", 0.02)
    monkeypatch.setattr(sender_module, "TROUBLE_SECONDS", 0.01)
    left = failing.at_first(monkeypatch, ledger, "settle", *[OperationalError("", {}, Exception("gone"))] * 20)
    scripted.pause()

    scripted._settle(ledger.Batch("one", []), [])

    assert left == []
    assert scripted.stopping.is_set()


@pytest.fixture
def leased_long_ago(in_context: None) -> None:
    """A delivery that another sender took, and whose lease is over."""
    factories.register(1)
    broadcast_id = factories.start_broadcast()
    commit(ledger.fill, broadcast_id)
    commit(ledger.claim, broadcast_id, lease="of another", limit=1, now=datetime.now(UTC) - timedelta(minutes=5))


@pytest.mark.usefixtures("leased_long_ago")
def test_no_lease_runs_out_just_after_a_start(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(scripted)
    assert mailer.sent == []

    monkeypatch.setattr(sender_module, "GRACE_SECONDS", 0.0)
    work(replace(scripted))
    assert len(mailer.sent) == 1


@pytest.mark.usefixtures("leased_long_ago")
def test_no_lease_runs_out_just_after_trouble_with_the_database(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "TROUBLE_SECONDS", 0.01)
    scripted._expire_from = time.monotonic()

    scripted._guard(gone)  # type: ignore[arg-type]
    work(scripted)
    assert mailer.sent == []

    scripted._expire_from = time.monotonic()
    work(scripted)
    assert len(mailer.sent) == 1


def five_minutes_behind(clock: Clock, _: Session) -> None:
    clock._set_to = datetime.now(UTC), time.monotonic(), timedelta(minutes=-5)


def test_leases_go_by_the_clock_of_the_database(scripted: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    factories.register(1)
    broadcast_id = factories.start_broadcast()
    commit(ledger.fill, broadcast_id)
    monkeypatch.setattr(Clock, "set", five_minutes_behind)

    scripted.look()
    scripted._claim_lot()

    leased_until = db.session.execute(select(Delivery.leased_until)).scalar_one()
    expected = datetime.now(UTC) - timedelta(minutes=5) + ledger.LEASE
    assert abs((leased_until - expected).total_seconds()) < 30


@pytest.mark.parametrize(("owner", "name"), [(Clock, "set"), (pacing, "needs_account")])
def test_what_a_sender_asks_when_it_starts_is_asked_again_if_that_fails(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    factories.register(1)
    factories.start_broadcast()
    monkeypatch.setattr(Clock, "set", five_minutes_behind)
    commit(pacing.needs_account, now=datetime.now(UTC).timestamp(), at_once=False)
    mailer.rate = 14.0

    def fail(*_: Any, **__: Any) -> None:
        raise OperationalError("", {}, Exception("gone"))

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(OperationalError):
            scripted.look()

    scripted.look()

    assert abs(scripted._clock.time() - datetime.now(UTC) + timedelta(minutes=5)) < timedelta(seconds=10)
    assert scripted._flow.rate == pytest.approx(14.0 * pacing.HEADROOM)


def test_a_clock_that_is_put_right_in_mid_broadcast_makes_no_lease_run_out(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those that others have, nor those of the sender itself for others."""
    monkeypatch.setattr(sender_module, "GRACE_SECONDS", 0.0)
    factories.register(6)
    broadcast_id = factories.start_broadcast()
    commit(ledger.fill, broadcast_id)
    ahead = timedelta(0)
    moved = replace(scripted, now=lambda: datetime.now(UTC) + ahead)
    looks = []

    def look_at(clock: Clock, _: Session) -> None:
        looks.append(ahead)
        clock._set_to = clock._now(), time.monotonic(), -ahead

    monkeypatch.setattr(Clock, "set", look_at)
    moved.look()
    theirs = ledgers.claim(broadcast_id, 2, lease="theirs", now=datetime.now(UTC))

    for ahead in (timedelta(hours=1), timedelta(hours=-1)):  # noqa: B007  what `moved` reads
        assert moved._clock.has_stepped()
        assert not moved._claim_ahead()
        moved._timetable = Timetable()
        moved._tend(moved._work[0])
        ours = ledgers.claim(broadcast_id, 2, now=moved._clock.time())
        assert not commit(ledger.expire, broadcast_id, datetime.now(UTC))
        moved.look()
        commit(ledger.release, ours)

    assert {line.status for line in ledgers.lines(broadcast_id)} == {DeliveryStatus.QUEUED, DeliveryStatus.SENDING}
    assert theirs is not None
    assert looks == [timedelta(0), timedelta(hours=1), timedelta(hours=-1)]


def test_a_machine_that_slept_takes_nothing_of_its_own_for_over(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "LATE_SECONDS", 60.0)
    factories.register(2)
    broadcast_id = factories.start_broadcast()
    commit(ledger.fill, broadcast_id)
    slept = timedelta(0)
    sleeper = replace(scripted, now=lambda: datetime.now(UTC) + slept)
    sleeper._expire_from = 0.0
    sleeper.look()
    (call,) = sleeper._claim_lot()

    slept = timedelta(minutes=5)  # the seconds that it was awake do not tell
    assert not sleeper._claim_ahead()
    sleeper._timetable = Timetable()
    sleeper.look()

    assert sleeper._claim_lot() == []
    sleeper._carry_out(call)
    assert len(mailer.sent) == 2


def test_a_broadcast_with_an_id_from_before_a_restore_has_its_own_message(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    factories.register(1)
    titles = []
    monkeypatch.setattr(mailer, "send", lambda message, _: [titles.append(message.subject) or ACCEPTED])
    for title in ("Before", "After"):
        broadcast_id = factories.start_broadcast(title)
        work(scripted)
        for table in (Delivery, BroadcastRequest, Broadcast):
            db.session.execute(delete(table))
        db.session.execute(update(Pace).values(free_at=0))
        db.session.commit()
        if db.engine.dialect.name == "mysql":
            db.session.execute(text(f"ALTER TABLE broadcast AUTO_INCREMENT = {broadcast_id}"))

    assert titles == ["Before", "After"]


def test_what_is_taken_apart_goes_on_in_calls_of_one_recipient(scripted: Sender, mailer: ScriptedMailer) -> None:
    factories.register(6)
    broadcast_id = factories.start_broadcast()
    sizes: list[int] = []

    def refuse_together(recipients: Sequence[Recipient]) -> list[Outcome]:
        sizes.append(len(recipients))
        return [Outcome(Verdict.APART)] * len(recipients) if len(recipients) > 1 else [ACCEPTED]

    mailer.script = [refuse_together] * 20
    while not sizes:
        step(scripted)
    first = len(sizes)

    work(scripted)

    assert progress(broadcast_id).sent == 6
    assert (set(sizes[:first]), sizes[first:]) == ({2}, [1] * 6)


def test_refusals_beside_what_is_taken_apart_count_as_refused_in_a_row(
    scripted: Sender, mailer: ScriptedMailer
) -> None:
    factories.register(20)
    broadcast_id = factories.start_broadcast()
    refused = Outcome(Verdict.REFUSED, reason="Because.")
    mailer.script = [lambda recipients: [refused] + [Outcome(Verdict.APART)] * (len(recipients) - 1)] * 20

    work(scripted)

    figures = progress(broadcast_id)
    assert (figures.status, figures.failed) == (BroadcastStatus.PAUSED, trouble.MOST_REFUSED)


def test_address_after_address_refused_is_not_blamed_on_the_addresses(scripted: Sender, mailer: ScriptedMailer) -> None:
    factories.register(20)
    broadcast_id = factories.start_broadcast()
    mailer.largest = 1
    mailer.script = [always(Verdict.REFUSED)] * 20

    work(scripted)

    figures = progress(broadcast_id)
    assert (figures.status, figures.failed) == (BroadcastStatus.PAUSED, trouble.MOST_REFUSED)
    assert "one address after another" in (figures.reason or "")


def test_bad_addresses_in_a_row_do_not_stop_a_broadcast_for_good(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = set(factories.register(8))
    factories.register(30)
    broadcast_id = factories.start_broadcast()
    monkeypatch.setattr(flow, "APART_SECONDS", 0.0)
    mailer.largest = 50

    def refuse(recipients: Sequence[Recipient]) -> list[Outcome]:
        """Answer as the SES mailer does when a bulk call holds a bad address."""
        first = [Outcome(Verdict.REFUSED) if one.address in bad else ACCEPTED for one in recipients[:5]]
        if not bad.intersection(one.address for one in recipients):
            return [ACCEPTED] * len(recipients)
        return first + [Outcome(Verdict.APART)] * len(recipients[5:])

    mailer.script = [refuse] * 40
    for _ in range(3):
        work(scripted)
        if progress(broadcast_id).status is BroadcastStatus.PAUSED:
            commit(broadcasts.resume, broadcast_id)

    figures = progress(broadcast_id)
    assert (figures.status, figures.sent, figures.failed) == (BroadcastStatus.SENT, 30, 8)


def test_a_mail_service_that_cannot_be_reached_for_long_is_told_as_the_reason(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    factories.register(4)
    broadcast_id = factories.start_broadcast()
    clock = [1000.0]
    monkeypatch.setattr(sender_module.time, "monotonic", lambda: clock[0])

    def heed(verdict: Verdict, seconds: float) -> BroadcastStatus:
        clock[0] += seconds
        scripted._heed(call, [Outcome(verdict, reason="Because.")] * 2)
        return progress(broadcast_id).status

    commit(ledger.fill, broadcast_id)
    scripted.look()
    call = Call(broadcast_id, ledger.Batch("one", []), 0.0)
    sending, paused = BroadcastStatus.SENDING, BroadcastStatus.PAUSED
    assert heed(Verdict.UNREACHED, 3600.0) is sending
    assert heed(Verdict.UNREACHED, 9.0) is sending
    assert heed(Verdict.ACCEPTED, 0.5) is sending
    assert heed(Verdict.UNREACHED, 3600.0) is sending
    assert heed(Verdict.UNREACHED, 10.0) is paused
    figures = progress(broadcast_id)
    assert (figures.failed, figures.reason) == (0, "Because.")
    assert figures.resume_at is not None


def test_what_one_sender_cannot_reach_holds_nobody_up_while_others_get_through(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    broadcast_id = ledgers.filled(4)
    batch = ledgers.claim(broadcast_id, 2)
    assert batch is not None
    commit(ledger.settle, batch, [ACCEPTED] * 2, datetime.now(UTC))
    scripted.look()
    call = Call(broadcast_id, ledger.Batch("two", []), time.monotonic())
    monkeypatch.setattr(trouble, "UNREACHED_SECONDS", 0.0)

    scripted._heed(call, always(Verdict.UNREACHED)([Recipient(0, "", None)]))
    assert progress(broadcast_id).status is BroadcastStatus.SENDING
    behind = ledgers.filled(1)
    scripted._heed(replace(call, broadcast_id=behind), always(Verdict.UNREACHED)([Recipient(0, "", None)]))
    assert progress(behind).status is BroadcastStatus.SENDING, "the others are busy with the first"

    db.session.execute(update(Delivery).values(settled_at=datetime.now(UTC) - timedelta(minutes=1)))
    db.session.commit()
    scripted._heed(call, always(Verdict.UNREACHED)([Recipient(0, "", None)]))
    assert progress(broadcast_id).status is BroadcastStatus.PAUSED


def test_who_is_left_of_one_broadcast_unanswered_keeps_no_other_waiting(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of the first get no answer whatever happens, and are queued again before the second begins."""
    monkeypatch.setattr(trouble, "FIRST_REST_SECONDS", trouble.LONGEST_REST_SECONDS)
    first = ledgers.filled(trouble.MOST_UNANSWERED + 1)
    ledgers.settle(ledgers.claim(first), *[Outcome(Verdict.UNKNOWN)] * (trouble.MOST_UNANSWERED + 1))
    commit(ledger.expire, first, datetime.now(UTC) + 2 * ledger.LEASE)
    mailer.script = [always(Verdict.UNKNOWN)] * trouble.MOST_UNANSWERED
    while mailer.script:
        step(scripted)
    second = factories.start_broadcast("Another")
    called: list[int] = []

    def answer(recipients: Sequence[Recipient]) -> list[Outcome]:
        called.extend(recipient.delivery_id for recipient in recipients)
        return [ACCEPTED] * len(recipients)

    mailer.script = [answer]
    until(lambda: step(scripted) and called)

    assert called == [ledgers.lines(second)[0].id]


def test_calls_without_an_answer_are_told_as_the_reason_until_something_leaves(
    scripted: Sender, mailer: ScriptedMailer
) -> None:
    broadcast_id = ledgers.filled(4)
    mailer.script = [always(Verdict.UNKNOWN)]
    scripted.look()
    scripted._carry_out(scripted._claim_lot()[0])

    assert "no answer" in str(progress(broadcast_id).reason)
    assert commit(ledger.expire, broadcast_id, datetime.now(UTC) + 2 * ledger.LEASE)
    work(scripted)
    figures = progress(broadcast_id)
    assert (figures.sent, figures.reason) == (4, None)


def test_while_no_call_is_answered_one_recipient_after_another_is_tried(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a lot would else be called at the end of each rest, and the same ones first of all."""
    monkeypatch.setattr(trouble, "LONGEST_REST_SECONDS", 0.5)
    monkeypatch.setattr(flow, "APART_SECONDS", 0.0)
    broadcast_id = ledgers.filled(400)
    mailer.rate, mailer.largest = 2000.0, 20
    calls: list[list[str]] = []

    def say_nothing(recipients: Sequence[Recipient]) -> list[Outcome]:
        calls.append([recipient.address for recipient in recipients])
        return always(Verdict.UNKNOWN)(recipients)

    mailer.script = [say_nothing] * 5
    while mailer.script:
        step(scripted)

    assert [len(call) for call in calls] == [20, 20, 1, 1, 1]
    assert len({address for call in calls for address in call}) == 43
    assert ledgers.statuses(broadcast_id) == {"sending": 43, "queued": 357}
    until(lambda: not step(scripted) and len(mailer.sent) == 357)
    assert len(mailer.times) == 5 + 1 + 18, "an answer to the sixth makes the calls full again"


def test_after_an_answer_calls_carry_one_recipient_each_for_a_while(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where fifty take longer than a call may, one gets an answer all the same."""
    monkeypatch.setattr(trouble, "LONGEST_REST_SECONDS", 0.05)
    ledgers.filled(100)
    mailer.rate, mailer.largest = 2000.0, 20
    calls: list[int] = []

    def answer_one(recipients: Sequence[Recipient]) -> list[Outcome]:
        calls.append(len(recipients))
        return [ACCEPTED] if len(recipients) == 1 else always(Verdict.UNKNOWN)(recipients)

    mailer.script = [answer_one] * 20
    until(lambda: not step(scripted) and not mailer.script)

    assert calls[:2] == [20, 20]
    assert set(calls[2:]) == {1}


def test_a_broadcast_that_gets_no_answer_keeps_no_other_waiting(scripted: Sender, mailer: ScriptedMailer) -> None:
    """Something in its message may be to blame."""
    first, second = ledgers.filled(60), ledgers.filled(60)
    own = {line.id for line in ledgers.lines(first)}
    mailer.rate, mailer.largest = 2000.0, 20

    def answer_the_second(recipients: Sequence[Recipient]) -> list[Outcome]:
        verdict = Verdict.UNKNOWN if own & {one.delivery_id for one in recipients} else Verdict.ACCEPTED
        return always(verdict)(recipients)

    mailer.script = [answer_the_second] * 1000
    scripted._troubles.of(first).suspect()
    with running(scripted):
        until(lambda: progress(second).status is BroadcastStatus.SENT)

    tried = ledgers.statuses(first)["sending"]
    assert 1 <= tried <= 5, "more and more seldom"


def test_a_pause_in_an_outage_does_not_let_a_broadcast_begin_with_full_calls_again(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trouble, "LONGEST_REST_SECONDS", 0.05)
    broadcast_id = ledgers.filled(400)
    mailer.rate, mailer.largest = 2000.0, 20
    calls: list[int] = []

    def say_nothing(recipients: Sequence[Recipient]) -> list[Outcome]:
        calls.append(len(recipients))
        return always(Verdict.UNKNOWN)(recipients)

    mailer.script = [say_nothing] * 2
    until(lambda: step(scripted) and not mailer.script)
    commit(broadcasts.pause, broadcast_id)
    step(scripted)
    assert not scripted.has_work
    commit(broadcasts.resume, broadcast_id)
    mailer.script = [say_nothing] * 2
    until(lambda: step(scripted) and not mailer.script)

    assert calls == [20, 20, 1, 1]


def test_calls_that_do_not_end_hold_up_nobody_else_and_count_when_they_do(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "LONGEST_CALL_SECONDS", 0.3)
    broadcast_id = ledgers.filled(30)
    end_late = EndLate()
    mailer.largest = 1
    mailer.script = [end_late] * 6
    with running(scripted):
        until(lambda: len(mailer.sent) == 24)

    left = [line for line in ledgers.lines(broadcast_id) if line.status is not DeliveryStatus.SENT]
    assert [(line.status, line.lease, line.attempts) for line in left] == [(DeliveryStatus.SENDING, None, 1)] * 6
    assert {line.reason for line in left} == {sender_module._NO_END}
    end_late.may_end.set()
    until(lambda: ledgers.statuses(broadcast_id) == {"sent": 30})


def test_a_call_that_does_not_end_does_not_keep_the_sender_from_stopping(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "LONGEST_CALL_SECONDS", 1.0)
    ledgers.filled(1)
    end_late = EndLate()
    mailer.script = [end_late]
    begun = time.monotonic()
    with running(scripted):
        until(lambda: mailer.times)

    assert time.monotonic() - begun < 20
    end_late.may_end.set()


def test_calls_that_do_not_end_count_as_unanswered(scripted: Sender) -> None:
    broadcast_id = ledgers.filled(6)
    scripted.look()
    calls = [*scripted._claim_lot(), *scripted._claim_lot()][:2]
    assert [len(call.batch.recipients) for call in calls] == [2, 2]
    trouble = scripted._troubles.of(broadcast_id)
    trouble.begin_probe(calls[0].batch.lease)
    for call in calls:
        scripted._open_calls[threading.Thread()] = call, time.monotonic() - sender_module.LONGEST_CALL_SECONDS

    scripted._give_up_calls()

    assert trouble.is_unanswered
    assert trouble.may_claim(time.monotonic() + 60)
    assert scripted._open_calls == {}


def test_an_unanswered_broadcast_of_which_nobody_is_queued_costs_no_claims(
    scripted: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    broadcast_id = ledgers.filled(2)
    assert ledgers.claim(broadcast_id) is not None
    scripted.look()
    scripted._troubles.of(broadcast_id).suspect()
    claims = []
    monkeypatch.setattr(ledger, "claim", lambda *_, **named: claims.append(named))

    assert (scripted._claim_lot(), claims) == ([], [])


def test_a_probe_that_is_late_makes_way_for_the_next(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    broadcast_id = ledgers.filled(4)
    scripted.look()
    scripted._troubles.of(broadcast_id).suspect()
    (probe,) = scripted._claim_lot()
    assert scripted._claim_lot() == []

    scripted._carry_out(replace(probe, due_at=time.monotonic() - 60.0))

    assert mailer.times == []
    assert len(scripted._claim_lot()) == 1


def test_not_even_the_first_call_is_due_while_it_is_claimed(scripted: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would leave late, and the next one, of another sender, in time: that is too soon after it."""
    ledgers.filled(1)
    scripted.look()
    claim = ledger.claim

    def claim_slowly(*arguments: Any, **named: Any) -> ledger.Batch | None:
        time.sleep(0.3)
        return claim(*arguments, **named)

    monkeypatch.setattr(ledger, "claim", claim_slowly)
    begun = time.monotonic()

    (call,) = scripted._claim_lot()

    assert call.due_at >= begun + 0.3


def test_a_slow_database_does_not_make_every_call_late(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim is nine round trips, and what comes half a second after its instant is given back."""
    broadcast_id = ledgers.filled(300)
    mailer.rate, mailer.largest = 300.0, 50
    claim, claims = ledger.claim, []

    def claim_slowly(*arguments: Any, **named: Any) -> ledger.Batch | None:
        time.sleep(0.7)
        claims.append(named["limit"])
        return claim(*arguments, **named)

    monkeypatch.setattr(ledger, "claim", claim_slowly)
    with running(scripted):
        until(lambda: progress(broadcast_id).status is BroadcastStatus.SENT)

    assert len(mailer.sent) == 300
    assert max(claims[:4]) > 200, "the first tells how long one takes; the next ones last as long"


def test_a_paused_broadcast_is_filled_and_sent_to_nobody(scripted: Sender, mailer: ScriptedMailer) -> None:
    factories.register(4)
    broadcast_id = factories.start_broadcast()
    commit(broadcasts.pause, broadcast_id)

    work(scripted)

    assert commit(ledger.counts, broadcast_id)["queued"] == 4
    assert mailer.sent == []


def test_a_call_is_measured_by_the_clock_and_by_the_processor(scripted: Sender, mailer: ScriptedMailer) -> None:
    factories.register(1)
    factories.start_broadcast()

    def answer_late(recipients: Sequence[Recipient]) -> list[Outcome]:
        time.sleep(0.3)
        return [ACCEPTED] * len(recipients)

    mailer.script = [answer_late]
    until(lambda: step(scripted) and mailer.sent)

    ((_, seconds),), (processor_seconds,) = scripted._flow._seconds, scripted._flow._processor_seconds
    assert 0 < processor_seconds < 0.3 <= seconds


def test_a_sender_that_slept_through_an_instant_gives_the_call_back(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    factories.register(1)
    broadcast_id = factories.start_broadcast()
    commit(ledger.fill, broadcast_id)
    scripted.look()
    (call,) = scripted._claim_lot()
    monkeypatch.setattr(sender_module, "LATE_SECONDS", 0.05)
    monkeypatch.setattr(scripted.stopping, "wait", lambda _: time.sleep(0.1))

    scripted._carry_out(call)

    assert mailer.sent == []
    assert commit(ledger.counts, broadcast_id)["queued"] == 1


def test_a_younger_broadcast_gets_no_turn_because_the_older_came_too_early(
    scripted: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    factories.register(2)
    for broadcast_id in (factories.start_broadcast("One"), factories.start_broadcast("Two")):
        commit(ledger.fill, broadcast_id)
    scripted.look()
    waits = iter([1.0, -1.0])
    monkeypatch.setattr(pacing, "free_in", lambda *_, **__: next(waits))

    assert scripted._claim_lot() == []


def test_what_waits_for_its_instant_is_given_back_when_its_broadcast_pauses(scripted: Sender) -> None:
    factories.register(3)
    broadcast_id = factories.start_broadcast()
    commit(ledger.fill, broadcast_id)
    scripted.look()
    for call in scripted._claim_lot():
        scripted._calls.put(call)
    commit(broadcasts.pause, broadcast_id)

    with running(scripted):
        until(lambda: commit(ledger.counts, broadcast_id)["queued"] == 3)


def test_nothing_that_a_look_waits_for_holds_the_claims_up(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    factories.register(6)
    factories.start_broadcast()
    look, has_looked, answered = scripted.look, threading.Event(), threading.Event()

    def look_slowly() -> bool:
        if has_looked.is_set():
            answered.wait(20)
        has_looked.set()
        return look()

    monkeypatch.setattr(scripted, "look", look_slowly)
    monkeypatch.setattr(flow, "LARGEST_LOT", mailer.largest)
    with running(scripted):
        until(lambda: len(mailer.sent) == 6, 15)
        answered.set()


@pytest.mark.parametrize("error", [OperationalError("", {}, Exception("gone")), RuntimeError("a bug")])
def test_the_loop_outlives_any_failure(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    factories.register(1)
    factories.start_broadcast()
    monkeypatch.setattr(sender_module, "TROUBLE_SECONDS", 0.01)
    failing.at_first(monkeypatch, broadcasts, "find_work", error)
    with running(scripted):
        until(lambda: mailer.sent)

    assert len(mailer.sent) == 1


def test_whoever_gives_way_to_others_goes_on_without_a_rest(
    scripted: Sender, mailer: ScriptedMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    factories.register(1)
    factories.start_broadcast()
    left = failing.at_first(monkeypatch, ledger, "fill", failing.deadlock())
    expire_from = scripted._expire_from
    monkeypatch.setattr(sender_module, "TROUBLE_SECONDS", math.inf)
    with running(scripted):
        until(lambda: mailer.sent)

    assert (left, scripted._expire_from) == ([], expire_from)


def test_what_waits_is_not_given_back_one_by_one_to_a_database_that_is_away(
    scripted: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fail_slowly(call: sender_module.Call) -> bool:
        tried.append(call)
        time.sleep(0.1)
        raise OperationalError("", {}, Exception("gone"))

    monkeypatch.setattr(sender_module, "RELEASE_SECONDS", 0.25)
    monkeypatch.setattr(scripted, "_release", fail_slowly)
    for _ in range(50):
        scripted._calls.put(sender_module.Call(1, ledger.Batch("lease", []), 0.0))
    scripted.stop()

    scripted.run()

    assert 1 <= len(tried) <= 3
