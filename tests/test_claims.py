"""Which deliveries leave next, in which calls, and when, on SQLite and on MariaDB."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from sqlalchemy.orm import sessionmaker

from registration import broadcasts, claims, pacing
from registration.claims import Claims
from registration.clock import Clock
from registration.db import db
from registration.flow import Flow
from registration.trouble import Trouble, Troubles

from .ledgers import commit, filled, statuses

pytestmark = pytest.mark.usefixtures("in_context")


@pytest.fixture
def flow() -> Flow:
    flow = Flow()
    flow.rate = 100.0
    return flow


@pytest.fixture
def troubles() -> Troubles:
    return Troubles()


@pytest.fixture
def made(flow: Flow, troubles: Troubles, in_context: None) -> Claims:
    return Claims(sessionmaker(db.engine), flow, troubles, Clock(), lambda _: 50)


def test_what_the_rate_allows_in_a_moment_is_claimed_as_calls_at_the_pace(made: Claims, flow: Flow) -> None:
    broadcast_id = filled(100)

    calls = made.take([broadcast_id])

    sizes = [len(call.batch.recipients) for call in calls]
    assert sizes == [flow.recipients_a_call()] * (flow.lot() // flow.recipients_a_call())
    assert statuses(broadcast_id) == {"sending": sum(sizes), "queued": 100 - sum(sizes)}
    gaps = [later.due_at - call.due_at for call, later in pairwise(calls)]
    assert gaps == pytest.approx([sizes[0] / 100.0] * len(gaps))
    assert len({call.batch.lease for call in calls}) == 1


def test_the_next_broadcast_has_its_turn_when_nobody_is_left_of_the_first(made: Claims) -> None:
    first, broadcast_id = filled(1), filled(1)
    made.take([first, broadcast_id])

    (call,) = made.take([first, broadcast_id])

    assert call.broadcast_id == broadcast_id


def test_nothing_is_claimed_before_its_time(made: Claims) -> None:
    broadcast_id = filled(1)
    commit(pacing.back_off, 5.0, now=time.time())

    assert made.take([broadcast_id]) == []
    assert 0.0 < made.not_before <= time.monotonic() + claims.AGAIN_SECONDS
    assert statuses(broadcast_id) == {"queued": 1}


def test_nothing_is_claimed_of_what_was_paused_a_moment_ago(made: Claims) -> None:
    broadcast_id = filled(1)
    commit(broadcasts.pause, broadcast_id)

    assert made.take([broadcast_id]) == []


def test_while_all_broadcasts_rest_there_is_a_moment_between_two_attempts(
    made: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    broadcast_id = filled(1)
    monkeypatch.setattr(Trouble, "may_claim", lambda *_: False)

    assert made.take([broadcast_id]) == []
    assert made.not_before > time.monotonic()


def test_a_broadcast_without_answers_gets_one_call_of_one_recipient(made: Claims, troubles: Troubles) -> None:
    broadcast_id = filled(10)
    troubles.of(broadcast_id).suspect()

    (call,) = made.take([broadcast_id])

    assert len(call.batch.recipients) == 1
    assert made.take([broadcast_id]) == []
