"""The shared pace."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update
from sqlalchemy.orm import sessionmaker

from registration import pacing
from registration.mailers import Account
from registration.models import Pace

NOW = 1_800_000_000.0


def reserve(sessions: sessionmaker, messages: int, *, now: float, rate: float = 10.0) -> float:
    with sessions.begin() as session:
        return pacing.reserve(session, messages, rate=rate, now=now)


def test_the_first_batch_goes_at_once_and_the_next_waits_for_its_time(sessions: sessionmaker) -> None:
    assert reserve(sessions, 5, now=NOW) == 0
    assert reserve(sessions, 5, now=NOW) == pytest.approx(0.5, abs=1e-5)
    assert reserve(sessions, 5, now=NOW + 0.25) == pytest.approx(0.75, abs=1e-5)


def test_idle_time_is_not_saved_up_for_a_burst(sessions: sessionmaker) -> None:
    reserve(sessions, 5, now=NOW)

    assert reserve(sessions, 5, now=NOW + 3600) == 0
    assert reserve(sessions, 5, now=NOW + 3600) == pytest.approx(0.5, abs=1e-5)


def test_backing_off_holds_everybody_and_never_shortens_a_wait(sessions: sessionmaker) -> None:
    with sessions.begin() as session:
        pacing.back_off(session, 2.0, now=NOW)
        pacing.back_off(session, 1.0, now=NOW)

    assert reserve(sessions, 1, now=NOW) == pytest.approx(2.0, abs=1e-5)
    assert reserve(sessions, 50, now=NOW, rate=float("inf")) == pytest.approx(2.1, abs=1e-5)


def test_simultaneous_senders_share_one_rate(sessions: sessionmaker) -> None:
    waits: list[float] = []

    def work() -> None:
        for _ in range(5):
            waits.append(reserve(sessions, 1, now=NOW))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(waits) == pytest.approx([number / 10 for number in range(20)], abs=1e-5)


def slow_down(sessions: sessionmaker, *, now: float) -> float:
    """Slow down; return what is left of the rate."""
    with sessions.begin() as session:
        pacing.slow_down(session, now=now)
        return pacing.current_rate(session, limit=1.0, now=now) / pacing.HEADROOM


def test_the_rate_is_lowered_when_the_mail_service_asks_again_soon_but_not_for_each_call_in_flight(
    sessions: sessionmaker,
) -> None:
    assert slow_down(sessions, now=NOW) == 1
    assert slow_down(sessions, now=NOW + 0.3) == 1
    assert slow_down(sessions, now=NOW + 0.6) == pytest.approx(pacing.LOWERED)
    assert slow_down(sessions, now=NOW + 0.9) == pytest.approx(pacing.recovered(pacing.LOWERED, 0.3))
    assert slow_down(sessions, now=NOW + 9.0) == 1


def test_a_rest_keeps_what_was_reserved_far_ahead_at_a_low_rate(sessions: sessionmaker) -> None:
    reserve(sessions, 1, now=NOW, rate=0.05)
    slow_down(sessions, now=NOW + 0.5)

    with sessions.begin() as session:
        assert pacing.free_at(session) == NOW + 20


def test_the_rate_is_never_lowered_to_nothing(sessions: sessionmaker) -> None:
    with sessions.begin() as session:
        session.execute(update(Pace).values(factor=pacing.LOWEST, throttled_at=NOW))

    assert slow_down(sessions, now=NOW + 0.5) == pytest.approx(pacing.LOWEST)


@pytest.mark.parametrize("seconds", [1_000.0, NOW])
def test_a_lowered_rate_recovers_however_long_ago_that_was(seconds: float) -> None:
    assert pacing.recovered(pacing.LOWEST, seconds) == 1


@given(rate=st.floats(0.01, 10_000), largest=st.integers(1, 50))
def test_a_batch_is_at_least_one_and_no_more_than_a_fraction_of_a_second(rate: float, largest: int) -> None:
    size = pacing.batch_size(rate, largest)

    assert 1 <= size <= largest
    assert size == 1 or size <= rate * pacing.BATCH_SECONDS


def test_an_unlimited_rate_fills_the_batch() -> None:
    assert pacing.batch_size(float("inf"), 50) == 50


def test_a_clock_that_was_wrong_blocks_nobody(sessions: sessionmaker) -> None:
    with sessions.begin() as session:
        pacing.reserve(session, 1, rate=10.0, now=NOW + 86_400)

    with sessions.begin() as session:
        assert pacing.free_in(session, rate=10.0, now=NOW) == 0
    assert reserve(sessions, 5, now=NOW) == 0
    assert reserve(sessions, 5, now=NOW) == pytest.approx(0.5, abs=1e-5)


def test_the_slowest_rate_is_no_wrong_clock(sessions: sessionmaker) -> None:
    reserve(sessions, 1, now=NOW, rate=0.01)

    with sessions.begin() as session:
        assert pacing.free_in(session, rate=0.01, now=NOW) == pytest.approx(100)


def test_a_rate_that_was_lowered_by_a_wrong_clock_in_the_future_has_recovered_and_can_be_lowered_anew(
    sessions: sessionmaker,
) -> None:
    with sessions.begin() as session:
        session.execute(update(Pace).values(factor=0.5, throttled_at=NOW + 3600))
        assert pacing.current_rate(session, limit=1.0, now=NOW) == pacing.HEADROOM
        assert not pacing.is_throttled(session, now=NOW)

    assert slow_down(sessions, now=NOW) == 1
    assert slow_down(sessions, now=NOW + 1) == pytest.approx(pacing.LOWERED)


def test_a_sender_that_runs_is_never_taken_for_absent_and_one_that_stopped_is_after_two_minutes(
    sessions: sessionmaker,
) -> None:
    with sessions.begin() as session:
        pacing.remember_account(session, Account(10.0))
        asked = []
        for second in range(0, 600, 5):
            asked += [second] if pacing.needs_account(session, now=NOW + second) else []
            assert pacing.absent_since(session, at(second + 4)) is None

        assert pacing.absent_since(session, at(asked[-1] + 120)) is None
        assert pacing.absent_since(session, at(asked[-1] + 121)) == at(asked[-1])


def test_a_time_to_come_that_a_wrong_clock_has_left_counts_for_absent_and_is_corrected(sessions: sessionmaker) -> None:
    with sessions.begin() as session:
        assert pacing.needs_account(session, now=NOW + 3600)
        assert pacing.absent_since(session, at(0)) is not None
        assert pacing.needs_account(session, now=NOW)
        assert pacing.absent_since(session, at(0)) is None


def at(second: float) -> datetime:
    return datetime.fromtimestamp(NOW + second, UTC)
