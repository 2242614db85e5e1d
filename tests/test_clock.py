"""What time a sender takes it to be, on SQLite and on MariaDB."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from registration import clock
from registration.clock import STEP, Clock
from registration.db import db

from .ledgers import commit

pytestmark = pytest.mark.usefixtures("in_context")

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Machine:
    """A machine's clock on the wall, and the seconds that it has been awake."""

    def __init__(self) -> None:
        self.wall, self.awake = NOON, 1000.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.awake

    def pass_by(self, time: timedelta, *, is_asleep: bool = False) -> None:
        self.wall += time
        self.awake += 0 if is_asleep else time.total_seconds()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(clock, "time", machine)
    return machine


def test_the_databases_clock_is_this_machines_when_it_runs_here() -> None:
    here = Clock()
    commit(here.set)

    assert abs(here.time() - datetime.now(UTC)) < timedelta(seconds=2)


def test_of_several_answers_the_quickest_counts_as_given_halfway(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has no clock")
    seconds = iter([3.0, 0.5, *[2.0] * clock.QUESTIONS])

    class Time(datetime):
        @classmethod
        def now(cls, _: object = None) -> datetime:
            return machine.wall

    def answer(_: object) -> datetime:
        machine.pass_by(timedelta(seconds=next(seconds)))
        return machine.wall + timedelta(hours=1)

    monkeypatch.setattr(clock, "datetime", Time)
    monkeypatch.setattr(clock, "database_time", answer)
    here = Clock(machine.now)
    commit(here.set)

    assert here.time() - machine.wall == timedelta(hours=1, seconds=0.25)


def test_time_goes_on_by_what_has_passed_whoever_moves_the_clock(machine: Machine) -> None:
    here = Clock(machine.now)
    machine.pass_by(timedelta(seconds=30))
    assert here.time() == NOON + timedelta(seconds=30)
    assert not here.has_stepped()

    machine.wall -= timedelta(hours=1)

    assert here.time() == NOON + timedelta(seconds=30)
    assert here.has_stepped()


@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(minutes=5)])
def test_what_was_moved_is_right_again_once_it_is_set(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, ahead: timedelta
) -> None:
    if db.engine.dialect.name != "mysql":
        ahead = timedelta(0)
    monkeypatch.setattr(Clock, "_ask", lambda *_: (0.0, ahead))
    here = Clock(machine.now)
    for step in (timedelta(0), timedelta(hours=1)):
        machine.wall += step
        assert here.has_stepped() is bool(step)

        commit(here.set)

        assert not here.has_stepped()
        assert here.time() == machine.wall + ahead


@pytest.mark.parametrize("sign", [1, -1])
def test_a_clock_that_was_moved_or_a_machine_that_slept_is_noticed(machine: Machine, sign: int) -> None:
    here = Clock(machine.now)
    machine.wall += sign * STEP
    assert not here.has_stepped()

    machine.wall += sign * STEP / 10
    assert here.has_stepped()

    here = Clock(machine.now)
    machine.pass_by(timedelta(minutes=5), is_asleep=True)
    assert here.has_stepped()
