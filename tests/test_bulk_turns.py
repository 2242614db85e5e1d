"""Turns at bulk calls where an account is held to one a second."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import sessionmaker

from registration import bulk_turns, pacing
from registration.bulk_turns import BulkTurn
from registration.models import Pace

NOW = 1_800_000_000.0


def take_ahead(sessions: sessionmaker, now: float, ahead: float) -> tuple[BulkTurn, float] | None:
    with sessions.begin() as session:
        found = bulk_turns.find(session, now=now, ahead=ahead)
        if found is not None:
            turn, wait = found
            bulk_turns.take(session, turn, 50, rate=250.0, at=now + wait)
        return found


def take(sessions: sessionmaker, now: float) -> BulkTurn | None:
    found = take_ahead(sessions, now, 0.0)
    return found and found[0]


@pytest.fixture
def scarce(sessions: sessionmaker) -> sessionmaker:
    """Where bulk calls are scarce since NOW."""
    with sessions.begin() as session:
        assert not bulk_turns.are_scarce(session)
        bulk_turns.note_scarce(session, now=NOW)
        assert bulk_turns.are_scarce(session)
    return sessions


def test_where_bulk_calls_are_scarce_all_senders_together_make_one_a_second(scarce: sessionmaker) -> None:
    turns = [take(scarce, NOW + tenths / 10) for tenths in range(100) for _ in range(3)]

    assert turns.count(BulkTurn.REGULAR) == 10
    assert set(turns) == {BulkTurn.REGULAR, None}
    assert [take(scarce, NOW + 20 + seconds) for seconds in (0, 1.0, 1.1)] == [
        BulkTurn.REGULAR,
        None,
        BulkTurn.REGULAR,
    ]


def test_a_bulk_turn_that_is_taken_ahead_comes_at_its_instant_and_the_next_after_it(scarce: sessionmaker) -> None:
    found = [(now, take_ahead(scarce, now, 0.25)) for now in (NOW + 0.2 * fifth for fifth in range(40))]

    taken = [(now, *turn) for now, turn in found if turn is not None]
    instants = [now + wait for now, turn, wait in taken if turn is BulkTurn.REGULAR]
    assert all(wait <= 0.25 for _, _, wait in taken)
    assert [instant - NOW for instant in instants] == pytest.approx([1.1 * number for number in range(len(instants))])
    assert len(instants) == 8


def test_that_bulk_calls_are_scarce_explains_what_lowered_the_rate(sessions: sessionmaker) -> None:
    with sessions.begin() as session:
        session.execute(update(Pace).values(factor=0.5, throttled_at=NOW))
        bulk_turns.note_scarce(session, now=NOW)

        assert session.execute(select(Pace.factor)).scalar_one() == 1.0


def test_now_and_then_one_more_within_a_second_tries_whether_they_still_are(scarce: sessionmaker) -> None:
    turns = [(tenths, take(scarce, NOW + tenths / 10)) for tenths in range(1250)]

    taken = [tenths for tenths, turn in turns if turn is not None]
    probes = [tenths for tenths, turn in turns if turn is BulkTurn.PROBE]
    assert len(probes) == 2
    assert probes[0] in range(100, 120)
    assert probes[1] in range(700, 730)
    for probe in probes:
        before = max(tenths for tenths in taken if tenths < probe)
        assert 3 <= probe - before <= 8
    with scarce.begin() as session:
        assert pacing.free_at(session) == pytest.approx(NOW + probes[1] / 10 + 50 / 250, abs=1e-3)
        bulk_turns.note_plenty(session)
        assert not bulk_turns.are_scarce(session)
    assert {take(scarce, NOW + 130 + tenths / 10) for tenths in range(20)} == {None}


def test_a_bulk_call_that_is_refused_in_its_turn_postpones_the_next(scarce: sessionmaker) -> None:
    assert take(scarce, NOW) is BulkTurn.REGULAR
    with scarce.begin() as session:
        bulk_turns.postpone(session, now=NOW)

    later = NOW + bulk_turns.LATER_SECONDS
    assert [take(scarce, now) for now in (NOW - 0.5, later - 0.1, later)] == [
        None,
        None,
        BulkTurn.REGULAR,
    ]


def test_a_probe_comes_after_a_call_that_was_let_through(scarce: sessionmaker) -> None:
    with scarce.begin() as session:
        session.execute(update(Pace).values(bulk_probe_at=NOW))
        bulk_turns.postpone(session, now=NOW)

    turns = [take(scarce, NOW + tenths / 10) for tenths in range(50)]
    assert [turn for turn in turns if turn is not None][:2] == [BulkTurn.REGULAR, BulkTurn.PROBE]


def test_a_probe_does_not_follow_a_turn_that_was_missed(scarce: sessionmaker) -> None:
    with scarce.begin() as session:
        session.execute(update(Pace).values(bulk_probe_at=NOW))
    assert take(scarce, NOW) is BulkTurn.REGULAR
    with scarce.begin() as session:
        bulk_turns.miss(session)

    turns = [take(scarce, NOW + tenths / 10) for tenths in range(30)]
    assert [turn for turn in turns if turn is not None][:2] == [BulkTurn.REGULAR, BulkTurn.PROBE]


def test_a_missed_turn_does_not_make_bulk_calls_scarce(sessions: sessionmaker) -> None:
    with sessions.begin() as session:
        session.execute(update(Pace).values(bulk_free_at=NOW))
        bulk_turns.miss(session)

        assert not bulk_turns.are_scarce(session)


def test_a_probe_that_a_wrong_clock_put_off_comes_all_the_same(scarce: sessionmaker) -> None:
    with scarce.begin() as session:
        session.execute(update(Pace).values(bulk_probe_at=NOW + 86_400))

    assert BulkTurn.PROBE in {take(scarce, NOW + tenths / 10) for tenths in range(20)}


def test_who_finds_out_later_that_bulk_calls_are_scarce_gives_nobody_a_turn(scarce: sessionmaker) -> None:
    take(scarce, NOW)
    with scarce.begin() as session:
        bulk_turns.note_scarce(session, now=NOW)

    assert take(scarce, NOW + 0.1) is None


def test_a_bulk_turn_that_a_wrong_clock_left_blocks_nobody(scarce: sessionmaker) -> None:
    take(scarce, NOW + 3600)

    assert take(scarce, NOW) is BulkTurn.REGULAR


def test_of_senders_that_ask_at_the_same_moment_one_gets_the_bulk_turn(scarce: sessionmaker) -> None:
    together = threading.Barrier(4)

    def ask(_: int) -> BulkTurn | None:
        with scarce.begin() as session:
            bulk_turns.are_scarce(session)
            together.wait(30)
            found = bulk_turns.find(session, now=NOW)
            if found is not None:
                time.sleep(0.05)
                bulk_turns.take(session, found[0], 50, rate=250.0, at=NOW)
            return found and found[0]

    with ThreadPoolExecutor(4) as pool:
        turns = list(pool.map(ask, range(4)))

    assert sorted(turns, key=bool) == [None, None, None, BulkTurn.REGULAR]
