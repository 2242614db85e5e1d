"""What anybody waits for a database that is away or hangs."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pymysql
import pytest
from pymysql.constants.CR import CR_SERVER_LOST
from sqlalchemy import Connection, Engine, create_engine, event, func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from registration import outage as outage_module
from registration.db import CONNECT_SECONDS, RENEW_SECONDS, STATEMENT_SECONDS, db, engine_options
from registration.outage import AWAY_SECONDS, REFUSED_SECONDS, Outage, expect_few_rows

pytestmark = pytest.mark.usefixtures("in_context")

CLOCK_STARTS = 1000.0


class Clock:
    """Stands in for the module `time`, and goes on only when told to."""

    def __init__(self) -> None:
        self.now = CLOCK_STARTS

    def monotonic(self) -> float:
        return self.now


def test_a_database_that_refuses_connections_is_left_in_peace_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    asked = []

    def refuse(*_: object, **__: object) -> None:
        asked.append(clock.now)
        raise ConnectionRefusedError

    monkeypatch.setattr(outage_module, "time", clock)
    monkeypatch.setattr(socket, "create_connection", refuse)
    engine = create_engine(**engine_options("mysql+pymysql://nobody@192.0.2.1/none", pool_size=1))
    Outage().watch(engine)

    for since in (0.0, REFUSED_SECONDS / 2, REFUSED_SECONDS):
        clock.now = CLOCK_STARTS + since
        for _ in range(3):
            with pytest.raises(OperationalError):
                engine.connect()

    assert asked == [CLOCK_STARTS, CLOCK_STARTS + REFUSED_SECONDS]


def test_a_database_that_is_slow_to_fail_is_left_in_peace_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    asked = []

    def hang(*_: object, **__: object) -> None:
        asked.append(clock.now)
        clock.now += CONNECT_SECONDS
        raise TimeoutError

    monkeypatch.setattr(outage_module, "time", clock)
    monkeypatch.setattr(socket, "create_connection", hang)
    engine = create_engine(**engine_options("mysql+pymysql://nobody@192.0.2.1/none", pool_size=1))
    Outage().watch(engine)
    failed_at = CLOCK_STARTS + CONNECT_SECONDS

    for since in (-CONNECT_SECONDS, 0.0, REFUSED_SECONDS, AWAY_SECONDS):
        clock.now = failed_at + since
        with pytest.raises(OperationalError):
            engine.connect()

    assert asked == [CLOCK_STARTS, failed_at + AWAY_SECONDS]


def test_a_refusal_does_not_shorten_the_peace_after_an_answer_that_did_not_come(
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has no time-out for answers")
    clock, outage, asked = Clock(), Outage(), []
    waiting, refused = (create_engine(**engine_options(database_url, pool_size=1, seconds=1)) for _ in range(2))
    outage.watch(waiting)
    outage.watch(refused)
    monkeypatch.setattr(outage_module, "time", clock)

    with waiting.connect() as connection:

        def refuse(*_: object, **__: object) -> None:
            asked.append(clock.now)
            with pytest.raises(OperationalError, match="timed out"):
                connection.execute(text("SELECT SLEEP(5)"))
            raise ConnectionRefusedError

        monkeypatch.setattr(socket, "create_connection", refuse)
        for since in (0.0, REFUSED_SECONDS):
            clock.now = CLOCK_STARTS + since
            with pytest.raises(OperationalError):
                refused.connect()

    assert asked == [CLOCK_STARTS]


def test_only_the_handshake_has_to_be_as_quick_as_the_connection() -> None:
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has no handshake")
    with db.engine.connect() as connection:
        assert connection.execute(text(f"SELECT SLEEP({CONNECT_SECONDS + 0.5})")).scalar_one() == 0


def test_a_database_that_listens_and_does_not_speak_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"mysql+pymysql://nobody@127.0.0.1:{silent.getsockname()[1]}/none"
        engine = create_engine(**engine_options(url, pool_size=1))
        Outage().watch(engine)
        begun = time.monotonic()
        with pytest.raises(OperationalError):
            engine.connect()

    assert time.monotonic() - begun < 2 * CONNECT_SECONDS


@pytest.mark.parametrize("quick", [True, False])
def test_after_a_quick_statement_that_was_not_answered_in_time_nobody_tries_to_connect(
    database_url: str, monkeypatch: pytest.MonkeyPatch, *, quick: bool
) -> None:
    """Whichever of the engines waited for it. Connections that there are already stay."""
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has no time-out for answers")
    monkeypatch.setattr(outage_module, "QUICK_SECONDS", 1 if quick else 0.5)
    outage = Outage()
    waiting, other = (create_engine(**engine_options(database_url, pool_size=2, seconds=1)) for _ in range(2))
    outage.watch(waiting)
    outage.watch(other)

    with waiting.connect() as connection:
        with waiting.connect() as at_rest:
            number = at_rest.connection.thread_id()  # type: ignore[attr-defined]
        with pytest.raises(OperationalError, match="timed out"):
            connection.execute(text("SELECT SLEEP(5)"))
    with waiting.connect() as still_there:
        assert still_there.connection.thread_id() == number  # type: ignore[attr-defined]

    if quick:
        with pytest.raises(OperationalError, match="away a moment ago"):
            other.connect()
    else:
        other.connect().close()
    for engine in (waiting, other):
        engine.dispose()


def test_a_session_that_expects_few_rows_waits_less_in_each_of_its_transactions_and_the_next_one_does_not(
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has no time-out for answers")
    monkeypatch.setattr(outage_module, "QUICK_SECONDS", 0.5)
    engine = create_engine(**engine_options(database_url, pool_size=1))
    Outage().watch(engine, ping=True)
    asleep = select(func.sleep(1))

    with Session(engine) as quick:
        expect_few_rows(quick)
        quick.execute(select(1))
    with Session(engine) as patient:
        assert patient.execute(asleep).scalar_one() == 0
    with Session(engine) as quick:
        expect_few_rows(quick)
        quick.execute(select(1))
        quick.commit()
        with pytest.raises(OperationalError, match="timed out"):
            quick.execute(asleep)
    with pytest.raises(OperationalError, match="away a moment ago"):
        engine.connect()
    engine.dispose()


@pytest.mark.parametrize("seconds", [0.25, 3])
def test_where_few_rows_are_expected_a_shorter_limit_stays_and_a_longer_one_comes_back(
    database_url: str, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has no time-out for answers")
    monkeypatch.setattr(outage_module, "QUICK_SECONDS", 0.5)
    engine = create_engine(**engine_options(database_url, pool_size=1, seconds=seconds))
    Outage().watch(engine)

    with Session(engine) as quick:
        expect_few_rows(quick)
        assert raw(quick.connection())._read_timeout == min(seconds, 0.5)
    with engine.connect() as connection:
        assert raw(connection)._read_timeout == seconds
    engine.dispose()


def test_what_is_set_up_on_a_new_connection_has_to_be_as_quick_as_the_handshake(database_url: str) -> None:
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has no handshake")
    engine = create_engine(**engine_options(database_url, pool_size=1))
    Outage().watch(engine)
    limits = []
    event.listen(engine, "connect", lambda connection, _: limits.append(connection._read_timeout))

    with engine.connect() as connection:
        limits.append(raw(connection)._read_timeout)

    assert limits == [CONNECT_SECONDS, STATEMENT_SECONDS]
    engine.dispose()


def raw(connection: Connection) -> Any:
    return connection.connection.dbapi_connection


def test_a_connection_that_was_just_made_is_not_asked_whether_it_lives(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a server is going down, that would be the second dead one for SQLAlchemy, which then gives up."""
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has no pings")
    engine = create_engine(**engine_options(database_url, pool_size=1))
    Outage().watch(engine, ping=True)

    def fail(*_: object, **__: object) -> None:
        raise pymysql.err.OperationalError(CR_SERVER_LOST, "gone")

    monkeypatch.setattr(pymysql.connections.Connection, "ping", fail)
    for _ in range(3):
        with engine.connect() as connection:
            assert connection.execute(select(1)).scalar_one() == 1
    engine.dispose()


@pytest.fixture
def engine_of_three(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine with three connections whose statements may take a second, which does not count as quick."""
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has no time-out for answers")
    monkeypatch.setattr(outage_module, "QUICK_SECONDS", 0.5)
    engine = create_engine(**engine_options(database_url, pool_size=3, seconds=1))
    Outage().watch(engine)
    yield engine
    engine.dispose()


def put_in_doubt(engine: Engine) -> list[int]:
    """Let one of three connections get no answer while the others rest; return the numbers of all, that one first."""
    with engine.connect() as waiting, engine.connect() as second, engine.connect() as third:
        numbers = [raw(connection).thread_id() for connection in (waiting, second, third)]
        second.close()
        third.close()
        with pytest.raises(OperationalError, match="timed out"):
            waiting.execute(text("SELECT SLEEP(5)"))
    return numbers


def numbers_of(engine: Engine) -> set[int]:
    """Return the numbers of three connections that are in use at once."""
    with engine.connect() as first, engine.connect() as second, engine.connect() as third:
        return {raw(connection).thread_id() for connection in (first, second, third)}


def test_after_a_statement_that_was_not_answered_in_time_older_connections_prove_once_that_they_live(
    engine_of_three: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def note(connection: Any, **_: object) -> None:
        asked.append(connection.thread_id())

    monkeypatch.setattr(pymysql.connections.Connection, "ping", note)
    _, *at_rest = put_in_doubt(engine_of_three)
    for _ in range(2):
        numbers_of(engine_of_three)

    assert sorted(asked) == sorted(at_rest)


def test_when_one_does_not_all_that_are_as_old_are_replaced(
    engine_of_three: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failover, all of a pool are dead without a word."""
    asked: list[int] = []

    def fail(connection: Any, **_: object) -> None:
        asked.append(connection.thread_id())
        raise pymysql.err.OperationalError(CR_SERVER_LOST, "gone")

    monkeypatch.setattr(pymysql.connections.Connection, "ping", fail)
    before = put_in_doubt(engine_of_three)

    assert numbers_of(engine_of_three).isdisjoint(before)
    assert len(asked) == 1


def test_a_ping_without_an_answer_puts_the_connections_of_all_engines_in_doubt(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has no pings")
    outage, asked = Outage(), []
    one, other = (create_engine(**engine_options(database_url, pool_size=1)) for _ in range(2))
    for engine in (one, other):
        outage.watch(engine, ping=engine is one)
        engine.connect().close()

    def wait(connection: Any, **_: object) -> None:
        asked.append(connection)
        try:
            raise TimeoutError
        except TimeoutError:
            raise pymysql.err.OperationalError(CR_SERVER_LOST, "timed out")  # noqa: B904  as PyMySQL does

    monkeypatch.setattr(pymysql.connections.Connection, "ping", wait)
    for engine in (one, other):
        with pytest.raises(OperationalError, match="away a moment ago"):
            engine.connect()
        engine.dispose()

    assert len(asked) == 2


def test_certificates_that_cannot_be_read_are_an_outage_too(caplog: pytest.LogCaptureFixture) -> None:
    engine = create_engine(**engine_options("mysql+pymysql://nobody@127.0.0.1/none?ssl_ca=/nowhere.pem", pool_size=1))
    Outage().watch(engine)

    with pytest.raises(OperationalError, match=r"Certificates: .*No such file"):
        engine.connect()

    assert [record.message for record in caplog.records] == ["certificates that DB_CONN_STR names could not be read"]


@pytest.mark.parametrize("are_old", [True, False])
def test_a_server_that_lets_nobody_write_any_more_is_left_by_connections_that_were_not_just_made(
    database_url: str, monkeypatch: pytest.MonkeyPatch, *, are_old: bool
) -> None:
    """The database's name may lead to another one by then, as after a blue/green switchover of Amazon RDS."""
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has no connections to give up")
    read_only = "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1290, MESSAGE_TEXT = 'running with --read-only'"
    clock = Clock()
    monkeypatch.setattr(outage_module, "time", clock)
    engine = create_engine(**engine_options(database_url, pool_size=3))
    Outage().watch(engine)

    before = numbers_of(engine)
    assert numbers_of(engine) == before
    clock.now += 2 * AWAY_SECONDS if are_old else AWAY_SECONDS
    with pytest.raises(OperationalError, match="read-only"), engine.connect() as connection:
        connection.exec_driver_sql(read_only)

    after = numbers_of(engine)
    assert after.isdisjoint(before) if are_old else after == before
    engine.dispose()


@pytest.mark.parametrize(("age", "is_renewed"), [(RENEW_SECONDS - 10, False), (RENEW_SECONDS + 10, True)])
def test_a_connection_is_renewed_after_some_minutes(
    database_url: str, monkeypatch: pytest.MonkeyPatch, age: float, *, is_renewed: bool
) -> None:
    """One that only reads would else stay at a server that was replaced."""
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has no server")
    engine = create_engine(**engine_options(database_url, pool_size=3))
    before = numbers_of(engine)

    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + age)

    assert (numbers_of(engine) != before) is is_renewed
    engine.dispose()


def test_a_connection_that_was_cut_is_replaced_at_once(database_url: str) -> None:
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has no connections to cut")
    engine = create_engine(**engine_options(database_url, pool_size=1))
    Outage().watch(engine, ping=True)
    numbers = []
    for _ in range(2):
        with engine.connect() as connection:
            numbers.append(connection.execute(text("SELECT CONNECTION_ID()")).scalar_one())
        db.session.execute(text(f"KILL {numbers[-1]}"))

    assert len(set(numbers)) == 2
    engine.dispose()
