"""How calls flow out of one process: their size, how many at once, and when each leaves."""

from __future__ import annotations

import math
import time

import pytest

from registration import flow, pacing
from registration.flow import FEWEST_IN_FLIGHT, FEWEST_SINGLE_IN_FLIGHT, Flow


def flow_at(
    rate: float,
    *,
    seconds: float = 0.2,
    processor_seconds: float = 0.006,
    scarce: bool = False,
) -> Flow:
    """Return a flow that has had a few calls with so many recipients a second of all senders."""
    made = Flow()
    made.rate, made.largest, made.are_bulk_calls_scarce = rate, 50, scarce
    for _ in range(9):
        made.note_call(seconds, processor_seconds)
    return made


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("rate", "call_seconds", "calls"),
    [
        (1.0, 0.2, FEWEST_IN_FLIGHT),
        (14.0, 0.2, 5),
        (300.0, 0.2, 13),
        (2000.0, 0.2, 12),
        (2000.0, 0.01, FEWEST_IN_FLIGHT),
        (1e5, 5.0, 48),
        (math.inf, 1.0, FEWEST_IN_FLIGHT),
    ],
)
def test_there_are_as_many_calls_in_flight_as_the_rate_needs(rate: float, call_seconds: float, calls: int) -> None:
    assert flow_at(rate, seconds=call_seconds).calls_in_flight() == calls


@pytest.mark.parametrize(("processor_seconds", "calls"), [(0.012, 14), (0.024, 7), (0.24, FEWEST_IN_FLIGHT)])
def test_there_are_no_more_calls_in_flight_than_the_process_has_time_for(processor_seconds: float, calls: int) -> None:
    assert flow_at(1e5, processor_seconds=processor_seconds).calls_in_flight() == calls


def test_one_call_that_fails_at_once_leaves_the_others_their_threads() -> None:
    calls = flow_at(300.0)
    needed = calls.calls_in_flight()

    calls.note_call(0.002, 0.001)

    assert calls.calls_in_flight() == needed > FEWEST_IN_FLIGHT


@pytest.mark.parametrize(
    ("rate", "recipients", "lot"), [(1.0, 1, 1), (14.0, 1, 2), (300.0, 7, 60), (2000.0, 50, 400), (1e5, 50, 500)]
)
def test_a_lot_is_what_the_rate_allows_in_a_fifth_of_a_second(rate: float, recipients: int, lot: int) -> None:
    calls = flow_at(rate)

    assert (calls.recipients_a_call(), calls.lot()) == (recipients, lot)


def test_where_the_database_is_slow_more_is_claimed_earlier() -> None:
    calls = flow_at(300.0)
    fast = calls.ahead_seconds, calls.lot_seconds, calls.longest_wait_seconds, calls.calls_ahead(), calls.lot()

    for seconds in [0.5] * 5 + [0.01] * 4:
        calls.note_claim(seconds)

    slow = calls.ahead_seconds, calls.lot_seconds, calls.longest_wait_seconds, calls.calls_ahead(), calls.lot()
    assert fast == pytest.approx((0.25, 0.2, 0.9, 11, 60))
    assert calls.claim_seconds == 0.5
    assert slow == (0.75, pytest.approx(0.6), pytest.approx(2.7), 33, 179)


def test_a_database_that_hangs_does_not_let_a_pause_wait_for_ever() -> None:
    calls = flow_at(300.0)

    for _ in range(9):
        calls.note_claim(60.0)

    assert calls.ahead_seconds + calls.lot_seconds < 5.0


def test_where_bulk_calls_are_scarce_they_take_their_recipients_off_the_rate_of_the_others() -> None:
    calls = flow_at(300.0, seconds=0.001, processor_seconds=0.003, scarce=True)

    assert calls.has_scarce_bulk_calls
    assert (calls.steady_rate, calls.recipients_a_call(), calls.lot()) == (250.0, 1, 50)
    assert calls.calls_in_flight() == FEWEST_SINGLE_IN_FLIGHT


@pytest.mark.parametrize("rate", [flow.MOST_SINGLE_CALLS, 1.0])
def test_scarce_bulk_calls_are_left_alone_where_calls_of_one_recipient_are_enough(rate: float) -> None:
    calls = flow_at(rate, scarce=True)

    assert not calls.has_scarce_bulk_calls
    assert (calls.steady_rate, calls.recipients_a_call()) == (rate, 1)


def test_while_calls_are_kept_apart_none_is_a_bulk_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(), flow_at(300.0, scarce=True)
    monkeypatch.setattr(flow, "time", clock)

    calls.keep_apart()
    calls.keep_apart(for_retry=True)

    assert (calls.is_apart, calls.has_scarce_bulk_calls, calls.recipients_a_call()) == (True, False, 1)
    clock.now += flow.APART_SECONDS - 0.001
    assert calls.is_apart
    clock.now += 0.002
    assert (calls.is_apart, calls.has_scarce_bulk_calls) == (False, True)


def test_calls_leave_at_their_instants_and_late_ones_as_the_granted_rate_allows() -> None:
    calls, now = flow_at(100.0 * pacing.HEADROOM), time.monotonic()

    assert calls.departure(now + 5.0, 10, latest=math.inf) == now + 5.0
    assert calls.departure(now + 1.0, 10, latest=math.inf) == pytest.approx(now + 5.1)
    assert calls.departure(now + 1.1, 20, latest=math.inf) == pytest.approx(now + 5.3)


def test_calls_that_come_too_late_do_not_make_the_next_ones_late() -> None:
    calls, now = flow_at(100.0 * pacing.HEADROOM), time.monotonic()
    calls.departure(now + 5.0, 10, latest=now + 5.0)

    late = [calls.departure(now + 1.0, 10, latest=now + 1.5) for _ in range(50)]

    assert late == [pytest.approx(now + 5.1)] * 50
    assert calls.departure(now + 5.2, 10, latest=now + 5.7) == pytest.approx(now + 5.2)


def test_how_long_calls_take_is_judged_by_those_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, clock = flow_at(14.0, seconds=0.02), Clock()
    monkeypatch.setattr(flow, "time", clock)
    for _ in range(50):
        calls.note_call(0.02, 0.006)
    clock.now += flow.OF_LATE_SECONDS
    assert calls.calls_in_flight() == FEWEST_IN_FLIGHT, "the last ones, for want of newer"

    calls.note_call(2.0, 0.006)

    assert calls.calls_in_flight() == 42


def test_when_calls_leave_late_there_are_as_many_as_slow_answers_need() -> None:
    calls = flow_at(300.0, seconds=0.1)
    for number in range(50):
        calls.note_call(1.0 if number % 3 == 0 else 0.1, 0.006)
    in_time = calls.calls_in_flight()

    calls.departure(time.monotonic() - 2 * flow.BEHIND_SECONDS, 1, latest=math.inf)

    assert in_time == math.ceil(1.5 * 300 / 7 * 0.1)
    assert calls.calls_in_flight() == math.ceil(1.5 * 300 / 7 * (17 * 1.0 + 33 * 0.1) / 50)


def test_who_cannot_keep_up_claims_no_more_ahead() -> None:
    calls = flow_at(300.0)
    ahead = calls.calls_ahead()

    calls.departure(time.monotonic() - 2 * flow.BEHIND_SECONDS, 1, latest=math.inf)
    assert (ahead, calls.calls_ahead()) == (11, 0)
    calls.departure(time.monotonic() + 1.0, 1, latest=math.inf)
    assert calls.calls_ahead() == ahead


@pytest.mark.parametrize(
    ("accepted_every", "after"),
    [(0.0, 2.0), (1.0, 2.0), (0.25, None), (0.05, None)],
    ids=["none", "one a second", "four a second", "all"],
)
def test_bulk_calls_are_scarce_where_for_two_seconds_hardly_more_than_one_a_second_is_let_through(
    monkeypatch: pytest.MonkeyPatch, accepted_every: float, after: float | None
) -> None:
    clock, calls = Clock(), flow_at(300.0)
    monkeypatch.setattr(flow, "time", clock)
    found, accepted_at = None, 0.0
    for _ in range(200):
        is_accepted = bool(accepted_every) and clock.now >= accepted_at + accepted_every - 1e-6
        accepted_at = clock.now if is_accepted else accepted_at
        if calls.shows_scarce_bulk_calls(was_refused=not is_accepted):
            found = clock.now - 1000.0
            break
        clock.now += 0.05

    assert found == (after if after is None else pytest.approx(after, abs=0.06))
