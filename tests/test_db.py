"""Column types and engines."""

from __future__ import annotations

import socket
import ssl
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pymysql
import pytest
from botocore.httpsession import DEFAULT_CA_BUNDLE
from flask import Flask
from pymysql.constants.CR import CR_SERVER_LOST
from pymysql.constants.ER import BAD_FIELD_ERROR, LOCK_WAIT_TIMEOUT, NO_DEFAULT_FOR_FIELD, TRUNCATED_WRONG_VALUE
from sqlalchemy import Connection, create_engine, event, insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError, StatementError
from sqlalchemy.orm import Session

from registration.db import (
    AUTOCOMMIT,
    CONNECT_SECONDS,
    LOCK_SECONDS,
    ROWS,
    TRIES,
    commit_steps,
    database_time,
    db,
    engine_options,
    is_fault,
    repeatable,
)
from registration.models import Registration, RegistrationStatus, WrongPin

from . import failing

pytestmark = pytest.mark.usefixtures("in_context")

NOW = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)


def store(created_at: datetime) -> Registration:
    row = {
        "product_id": uuid.UUID(int=7),
        "email": "a@example.org",
        "email_key": "a@example.org",
        "status": RegistrationStatus.ACTIVE,
        "created_at": created_at,
    }
    db.session.execute(insert(Registration).values(row))
    return db.session.execute(select(Registration)).scalar_one()


def test_a_time_comes_back_aware_in_utc_to_the_microsecond() -> None:
    assert store(NOW.astimezone(timezone(timedelta(hours=-5)))).created_at == NOW


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(StatementError, match="without a zone"):
        store(NOW.replace(tzinfo=None))


def test_ids_and_names_come_back_as_what_they_were() -> None:
    stored = store(NOW)

    assert stored.product_id == uuid.UUID(int=7)
    assert stored.status is RegistrationStatus.ACTIVE


def test_a_statement_on_an_autocommit_connection_stands_at_once() -> None:
    with db.engines[AUTOCOMMIT].connect() as connection:
        connection.execute(text("UPDATE pace SET free_at = 5"))
        assert db.session.execute(text("SELECT free_at FROM pace")).scalar_one() == 5


def test_parameters_stay_out_of_error_messages() -> None:
    with pytest.raises(StatementError) as caught:
        db.session.execute(text("SELECT no_such_column FROM pace WHERE id = :id"), {"id": "ann@example.org"})

    assert "ann@example.org" not in str(caught.value)


def test_transactions_on_mysql_read_what_is_committed() -> None:
    if db.engine.dialect.name == "mysql":
        assert db.session.connection().get_isolation_level() == "READ COMMITTED"
    else:
        assert db.session.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"


def test_a_statement_that_had_to_give_way_to_another_is_done_again() -> None:
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has one writer at a time")
    tried = []

    def work(connection: Connection) -> int:
        tried.append(connection)
        if len(tried) == 1:
            connection.exec_driver_sql("SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'Deadlock'")
        return connection.exec_driver_sql("SELECT 7").scalar_one()

    assert repeatable(db.engines[AUTOCOMMIT], work) == 7
    assert len(tried) == 2


def test_a_transaction_whose_commit_fails_is_not_left_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the pool itself rolls nothing back."""
    engine = db.engines[ROWS]
    refusal = engine.dialect.loaded_dbapi.OperationalError(1180, "Got error 28 during COMMIT")
    wrong = {"network": "192.0.2.7", "created_at": NOW}

    def fail(_: object) -> None:
        raise refusal

    with monkeypatch.context() as refusing:
        refusing.setattr(engine.dialect, "do_commit", fail)
        with pytest.raises(OperationalError), engine.begin() as connection:
            connection.execute(insert(WrongPin).values(wrong))
    with engine.begin() as connection:
        connection.execute(select(1))

    with engine.connect() as connection:
        assert connection.execute(select(WrongPin)).all() == []


def test_nobody_waits_long_for_a_lock() -> None:
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has no row locks")
    for engine in db.engines.values():
        with engine.connect() as connection:
            assert connection.execute(text("SELECT @@innodb_lock_wait_timeout")).scalar_one() == LOCK_SECONDS


def test_nobody_waits_long_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def hang(address: object, timeout: float | None = None, **others: object) -> None:
        asked.append(timeout)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", hang)
    engine = create_engine(**engine_options("mysql+pymysql://nobody@192.0.2.1/none", pool_size=1))

    with pytest.raises(OperationalError):
        engine.connect()
    assert asked == [CONNECT_SECONDS]


def test_a_connection_with_certificates_of_authorities_is_encrypted_with_the_right_host_or_is_none(
    database_url: str,
) -> None:
    engine = create_engine(**engine_options("mysql+pymysql://root@host/none?ssl_ca=" + DEFAULT_CA_BUNDLE, pool_size=1))
    arguments: dict[str, Any] = {}

    @event.listens_for(engine, "do_connect")
    def note(_: object, __: object, ___: object, named: dict[str, Any]) -> None:
        arguments.update(named)
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        engine.connect()
    connection = pymysql.Connection(**arguments, defer_connect=True)
    assert connection.ctx.check_hostname
    assert connection.ctx.verify_mode is ssl.CERT_REQUIRED
    if db.engine.dialect.name == "mysql":  # which speaks no TLS here
        here = make_url(database_url).set(query={"ssl_ca": DEFAULT_CA_BUNDLE}).render_as_string(hide_password=False)
        with pytest.raises(OperationalError, match="SSL"):
            create_engine(**engine_options(here, pool_size=1)).connect()


@pytest.mark.parametrize(
    ("code", "is_to_blame"),
    [
        (BAD_FIELD_ERROR, True),
        (NO_DEFAULT_FOR_FIELD, True),
        (TRUNCATED_WRONG_VALUE, True),
        (LOCK_WAIT_TIMEOUT, False),
        (CR_SERVER_LOST, False),
    ],
)
def test_a_statement_that_is_to_blame_is_told_from_a_server_that_is_away(code: int, *, is_to_blame: bool) -> None:
    assert is_fault(OperationalError("", {}, pymysql.err.OperationalError(code, "What is wrong."))) is is_to_blame
    assert not is_fault(OperationalError("", {}, Exception()))


def test_the_time_is_that_of_the_databases_clock() -> None:
    """Where it has one: MariaDB lets a session have a time of its own."""
    session = db.session()
    is_server = session.get_bind().dialect.name == "mysql"
    there = NOW - timedelta(days=30) if is_server else datetime.now(UTC)
    if is_server:
        session.execute(text("SET timestamp = :there"), {"there": there.timestamp()})
    try:
        assert abs(database_time(session) - there) < timedelta(seconds=10)
    finally:
        if is_server:
            session.execute(text("SET timestamp = DEFAULT"))


@pytest.mark.parametrize(("times", "is_done"), [(TRIES - 1, True), (TRIES, False)])
def test_who_gives_way_again_and_again_is_tried_a_few_times(application: Flask, times: int, *, is_done: bool) -> None:
    deadlocks = [failing.deadlock()] * times

    def work(_: Connection) -> str:
        if deadlocks:
            raise deadlocks.pop()
        return "done"

    with application.app_context():
        engine = db.engines[AUTOCOMMIT]
        if is_done:
            assert repeatable(engine, work) == "done"
        else:
            with pytest.raises(OperationalError):
                repeatable(engine, work)


def test_steps_are_taken_until_there_is_no_more_and_all_but_the_first_are_told(application: Flask) -> None:
    told: list[bool] = []

    def step(_: Session, *, begun: bool = False) -> bool:
        told.append(begun)
        return len(told) < 3

    with application.app_context():
        commit_steps(step)

    assert told == [False, True, True]
