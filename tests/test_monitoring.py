"""What is told of a broadcast: how far it has come, what keeps it, when it will have ended; what a new one would be."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from registration import broadcasts, ledger, messages, monitoring, pacing
from registration.audiences import Audience
from registration.db import db
from registration.mailers import Account
from registration.models import (
    Broadcast,
    Pace,
    Registration,
    RegistrationStatus,
)
from registration.versions import parse_range

from . import factories
from .ledgers import (
    ACCEPTED,
    AFTER_LEASE,
    NOW,
    REFUSED,
    THROTTLED,
    UNKNOWN,
    claim,
    commit,
    end,
    filled,
    progress,
    settle,
)

pytestmark = pytest.mark.usefixtures("in_context")

LATER = NOW + timedelta(hours=1)
MESSAGE = messages.compose("Update now", "There is a hole.")
OTHER = messages.compose("Update now", "There is another hole.")
BELOW = Audience(parse_range("<7.0.3.1"))


def start(message: messages.Message = MESSAGE, **how: Any) -> int:
    return commit(broadcasts.start, message, NOW, **how)


def test_one_that_waits_for_another_says_so() -> None:
    factories.put_sender_to_work(NOW)
    nobody = factories.start_broadcast()
    factories.register(1)
    first, second = (factories.start_broadcast() for _ in range(2))
    urgent = start(OTHER, urgent=True)
    paused = factories.start_broadcast()
    commit(broadcasts.pause, paused)

    def reasons() -> list[str | None]:
        return [progress(one).reason for one in (nobody, first, second, urgent, paused)]

    waits = "It waits: broadcast {} goes first. An urgent one would not wait."
    for_urgent = f"It waits: broadcast {urgent} goes first."
    assert reasons() == [None, for_urgent, for_urgent, None, broadcasts.PAUSED_BY_HAND]
    end(urgent)
    assert reasons() == [None, None, waits.format(first), None, broadcasts.PAUSED_BY_HAND]
    commit(broadcasts.hurry, first)
    commit(broadcasts.hurry, second)
    assert reasons()[1:3] == [None, f"It waits: broadcast {first} goes first."]
    commit(ledger.fill, second)
    settle(claim(second), ACCEPTED)
    assert reasons()[1:3] == [None, None]


def test_one_that_nobody_sends_says_so() -> None:
    nothing = "No sender has been at work {}, so nothing happens. If it stays so, the operator has to start one."
    know(Account(sending_rate=10.0))
    ended, going, paused, cancelled = start(OTHER), filled(1), filled(1), filled(1)
    commit(broadcasts.pause, paused)
    commit(broadcasts.cancel, cancelled)

    def reasons() -> list[str | None]:
        assert progress(ended).reason is None
        assert progress(paused).reason == broadcasts.PAUSED_BY_HAND
        return [progress(one).reason for one in (going, cancelled)]

    factories.put_sender_to_work(datetime.fromtimestamp(0, UTC))
    assert reasons() == [nothing.format("yet")] * 2
    factories.put_sender_to_work(NOW - timedelta(seconds=pacing.ABSENT_SECONDS))
    assert reasons() == [None, None]
    assert progress(going).expected_end is not None
    factories.put_sender_to_work(NOW - timedelta(seconds=pacing.ABSENT_SECONDS + 1))
    since = f"since {NOW - timedelta(seconds=pacing.ABSENT_SECONDS + 1):%Y-%m-%d %H:%M} UTC"
    assert reasons() == [nothing.format(since)] * 2
    assert progress(going).expected_end is None
    factories.put_sender_to_work(LATER)
    assert "No sender" in str(reasons()[0])
    settle(claim(going), ACCEPTED)
    assert progress(going).rate > 0
    assert reasons()[0] is None


def test_one_that_is_held_up_says_that_nobody_sends_it_when_it_should_have_gone_on() -> None:
    held = filled(1)
    commit(broadcasts.hold, held, reason="Quota.", now=NOW)

    assert progress(held).reason == "Quota."
    assert "No sender" in str(progress(held, now=NOW + broadcasts.HOLD).reason)


def test_one_that_got_no_answer_says_so_rather_than_that_it_waits_and_until_something_leaves() -> None:
    factories.put_sender_to_work(NOW)
    first, second = filled(2), filled(2)
    know(Account(sending_rate=10.0))
    batches = [claim(broadcast_id, limit=1) for broadcast_id in (first, second)]
    assert progress(first).reason is None
    for batch in batches:
        settle(batch, UNKNOWN)
    assert all("no answer" in str(progress(one).reason) for one in (first, second))
    assert commit(ledger.expire, first, AFTER_LEASE)
    assert "no answer" in str(progress(first).reason)
    assert progress(first).expected_end is None
    assert claim(first, limit=1) is not None
    assert "no answer" in str(progress(first).reason)

    settle(claim(second, limit=1), ACCEPTED)
    assert progress(second).reason is None
    commit(broadcasts.pause, first)
    assert progress(first).reason == broadcasts.PAUSED_BY_HAND


def test_a_call_that_takes_longer_than_any_should_is_told_as_the_reason() -> None:
    broadcast_id = filled(2)
    assert claim(broadcast_id, limit=1) is not None
    factories.put_sender_to_work(NOW + ledger.LONGEST_CALL)
    assert progress(broadcast_id, now=NOW + ledger.LONGEST_CALL).reason is None

    assert "no answer" in str(progress(broadcast_id, now=NOW + ledger.LONGEST_CALL + timedelta(seconds=1)).reason)


def test_one_of_which_the_mail_service_takes_nothing_says_so_until_it_does() -> None:
    broadcast_id = filled(2)
    know(Account(sending_rate=10.0))
    factories.put_sender_to_work(NOW)
    settle(claim(broadcast_id), THROTTLED, THROTTLED)
    commit(pacing.slow_down, now=NOW.timestamp())

    assert "asks to slow down" in str(progress(broadcast_id).reason)
    assert progress(broadcast_id).expected_end is None
    assert "goes first" in str(progress(filled(1)).reason)
    assert progress(broadcast_id, now=NOW + timedelta(seconds=11)).reason is None
    settle(claim(broadcast_id, limit=1), ACCEPTED)
    assert progress(broadcast_id).reason is None


def test_how_long_it_takes_is_not_known_where_there_is_no_limit_and_none_was_sent_of_late() -> None:
    know(Account(sending_rate=math.inf))
    assert commit(monitoring.forecast, NOW).seconds == 0.0
    broadcast_id = filled(3)

    assert commit(monitoring.forecast, NOW).seconds is None
    assert progress(broadcast_id).expected_end is None
    settle(claim(broadcast_id, 1), ACCEPTED)
    assert progress(broadcast_id, NOW + timedelta(seconds=1)).expected_end == NOW + timedelta(seconds=3)


def test_progress_promises_the_whole_audience_while_the_ledger_is_being_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "REGISTRATIONS_AT_ONCE", 2)
    factories.register(5)
    broadcast_id = factories.start_broadcast()
    commit(ledger.fill, broadcast_id)

    filling = progress(broadcast_id)

    assert (filling.recipients, filling.remaining) == (5, 5)


def test_who_opts_out_before_the_ledger_has_them_counts_as_skipped() -> None:
    factories.register(3)
    broadcast_id = factories.start_broadcast()
    (gone, *_) = db.session.execute(select(Registration.id)).scalars()
    db.session.execute(update(Registration).where(Registration.id == gone).values(status="opted_out"))
    db.session.commit()
    while commit(ledger.fill, broadcast_id):
        pass
    settle(claim(broadcast_id), ACCEPTED, ACCEPTED)
    commit(broadcasts.finish, broadcast_id, NOW)

    end = progress(broadcast_id)

    assert (end.recipients, end.sent, end.skipped, end.remaining) == (3, 2, 1, 0)


def test_who_comes_back_before_the_ledger_passes_them_is_told_of_too() -> None:
    factories.register(2)
    factories.register(1, status=RegistrationStatus.BOUNCED)
    factories.register(1)
    broadcast_id = factories.start_broadcast()
    db.session.execute(update(Registration).values(status="active"))
    db.session.commit()
    while commit(ledger.fill, broadcast_id):
        pass

    full = progress(broadcast_id)

    assert (full.recipients, full.skipped, full.remaining) == (4, 0, 4)


@pytest.mark.parametrize("include_unknown", [True, False])
def test_a_forecast_tells_who_is_in_and_who_is_not_and_writes_nothing(include_unknown: bool) -> None:
    know(Account(10.0))
    old, new, _ = factories.register(3)
    factories.install(old, "7.0.2")
    factories.install(new, "7.0.3 (1)")
    for number, status in enumerate(RegistrationStatus):
        if status is not RegistrationStatus.ACTIVE:
            for email in factories.register(number, status=status):
                factories.install(email, "7.0.2")
    before = commit(lambda session: session.execute(select(func.count()).select_from(Broadcast)).scalar())

    whom = Audience(BELOW.versions, include_unknown=include_unknown)
    told = commit(monitoring.forecast, NOW, whom=whom)

    order = list(RegistrationStatus)
    suppressed = order.index(RegistrationStatus.BOUNCED) + order.index(RegistrationStatus.COMPLAINED)
    assert (told.in_range, told.unknown, told.outside) == (1, 1, 1)
    assert (told.opted_out, told.suppressed) == (order.index(RegistrationStatus.OPTED_OUT), suppressed)
    assert told.unconfirmed == order.index(RegistrationStatus.UNCONFIRMED)
    assert told.recipients == progress(start(whom=whom)).recipients == 1 + include_unknown
    assert told.seconds == pytest.approx(told.recipients / 10 / pacing.HEADROOM)
    assert before == 0


def test_a_forecast_without_a_range_has_all_in_it() -> None:
    factories.register(2)
    factories.register(1, status=RegistrationStatus.OPTED_OUT)

    told = commit(monitoring.forecast, NOW)

    assert (told.recipients, told.in_range, told.unknown, told.outside, told.opted_out) == (2, 2, 0, 0, 1)
    assert told.seconds is None


def test_a_forecast_heeds_the_daily_quota() -> None:
    factories.register(30)
    know(Account(10.0, daily_quota=10, sent_last_day=10))

    assert commit(monitoring.forecast, NOW).seconds == pytest.approx(3 * 86400, abs=10)


def know(account: Account) -> None:
    commit(pacing.remember_account, account)
    factories.put_sender_to_work(NOW)


def test_the_expected_end_follows_from_what_is_left_and_the_rate() -> None:
    broadcast_id = filled(100)
    know(Account(sending_rate=10.0))
    settle(claim(broadcast_id, 3), ACCEPTED, REFUSED, UNKNOWN)

    took = 98 / (10.0 * pacing.HEADROOM)
    assert progress(broadcast_id).expected_end == NOW + timedelta(seconds=took)
    assert progress(broadcast_id, rate_limit=5.0).expected_end == NOW + timedelta(seconds=2 * took)


def test_the_expected_end_is_another_day_when_the_daily_quota_does_not_suffice() -> None:
    broadcast_id = filled(100)
    know(Account(sending_rate=10.0, daily_quota=60, sent_last_day=20))

    end = progress(broadcast_id).expected_end

    assert end == NOW + timedelta(days=1, seconds=60 / (10.0 * pacing.HEADROOM))


def test_the_quota_is_used_by_what_was_sent_since_the_mail_service_was_asked() -> None:
    ended, broadcast_id = filled(3), filled(97)
    settle(claim(ended), *[ACCEPTED] * 3)
    commit(broadcasts.finish, ended, NOW)
    settle(claim(broadcast_id, 40), *[ACCEPTED] * 38, REFUSED, UNKNOWN)
    know(Account(sending_rate=10.0, daily_quota=100, sent_last_day=0))

    def seconds_left(asked_at: datetime) -> float:
        commit(lambda session: session.execute(update(Pace).values(asked_at=asked_at.timestamp())))
        end = progress(broadcast_id).expected_end
        assert end is not None
        return (end - NOW).total_seconds()

    rate = 10.0 * pacing.HEADROOM
    assert seconds_left(NOW) == pytest.approx(61 / rate)
    assert seconds_left(NOW - timedelta(seconds=1)) == pytest.approx(86400 + (61 - (100 - 41)) / rate)


def test_what_was_sent_since_a_time_is_counted_in_the_order_of_sending() -> None:
    broadcast_id, _ = filled(30), filled(5)
    assert commit(ledger.sent_since, broadcast_id, NOW) == 0

    for minute in range(10):
        batch = claim(broadcast_id, 3)
        assert batch is not None
        commit(ledger.settle, batch, [ACCEPTED, REFUSED, ACCEPTED], NOW + timedelta(minutes=minute))

    for minutes, number in [(-1, 20), (0, 18), (1, 16), (8, 2), (9, 0), (60, 0)]:
        assert commit(ledger.sent_since, broadcast_id, NOW + timedelta(minutes=minutes)) == number


def test_the_end_of_a_broadcast_that_is_held_up_is_expected_too() -> None:
    broadcast_id = filled(20)
    know(Account(sending_rate=10.0, daily_quota=100, sent_last_day=100))
    commit(broadcasts.hold, broadcast_id, reason="Quota.", now=NOW)

    took = timedelta(days=1, seconds=20 / (10.0 * pacing.HEADROOM))
    assert progress(broadcast_id).expected_end == NOW + broadcasts.HOLD + took
    factories.put_sender_to_work(LATER)
    assert progress(broadcast_id, LATER).expected_end == LATER + took
    commit(broadcasts.pause, broadcast_id)
    assert progress(broadcast_id).expected_end is None


def test_a_broadcast_ends_after_those_that_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    know(Account(sending_rate=10.0))
    monkeypatch.setattr(ledger, "REGISTRATIONS_AT_ONCE", 4)
    factories.register(10)
    first, second, third, urgent = (start(messages.compose(title, "x"), urgent=title == "d") for title in "abcd")
    commit(ledger.fill, second)
    settle(claim(second, 2), ACCEPTED, REFUSED)

    def ends() -> list[float | None]:
        found = [progress(one).expected_end for one in (urgent, first, second, third)]
        rate = 10.0 * pacing.HEADROOM
        return [end and round((end - NOW).total_seconds() * rate) for end in found]

    assert ends() == [10, 20, 28, 38]
    commit(broadcasts.hold, urgent, reason="Quota.", now=NOW - broadcasts.HOLD)
    assert ends() == [10, 20, 28, 38]
    commit(broadcasts.pause, first)
    commit(broadcasts.cancel, urgent)
    assert ends() == [None, None, 8, 18]


def test_nobody_is_waited_for_who_was_lost_before_the_ledger_of_an_earlier_broadcast_had_them() -> None:
    know(Account(sending_rate=10.0))
    factories.register(20)
    first = start()
    db.session.execute(update(Registration).values(status="opted_out"))
    db.session.commit()
    while commit(ledger.fill, first):
        pass
    factories.register(10)
    second = start(OTHER)

    end = progress(second).expected_end

    assert end is not None
    assert round((end - NOW).total_seconds() * 10.0 * pacing.HEADROOM) == 10


def test_the_rate_is_that_of_the_last_messages() -> None:
    broadcast_id = filled(30)
    settle(claim(broadcast_id, 20), *[ACCEPTED] * 20)

    assert progress(broadcast_id, NOW + timedelta(seconds=5)).rate == pytest.approx(4.0)
    assert progress(broadcast_id, NOW + timedelta(seconds=60)).rate == 0.0


def test_the_rate_of_a_retry_is_not_that_of_who_got_it_long_ago() -> None:
    broadcast_id = filled(30)
    settle(claim(broadcast_id, 10), *[REFUSED] * 10)
    settle(claim(broadcast_id, 20), *[ACCEPTED] * 20)
    commit(broadcasts.finish, broadcast_id, NOW)
    later = NOW + timedelta(hours=1)
    commit(broadcasts.retry, broadcast_id, later)
    commit(ledger.settle, claim(broadcast_id, 8), [ACCEPTED] * 8, later)

    assert progress(broadcast_id, later + timedelta(seconds=2)).rate == pytest.approx(4.0)


def test_nobody_knows_the_end_before_the_mail_service_has_told_its_rate() -> None:
    broadcast_id = filled(3)
    assert progress(broadcast_id).expected_end is None

    know(Account(sending_rate=10.0))
    assert progress(broadcast_id).expected_end is not None


def test_the_end_at_no_limit_goes_by_the_rate_of_late() -> None:
    know(Account(sending_rate=math.inf))
    broadcast_id = filled(30)
    settle(claim(broadcast_id, 20), *[ACCEPTED] * 20)

    now = NOW + timedelta(seconds=4)
    assert progress(broadcast_id, now).expected_end == now + timedelta(seconds=2)
