"""The database: the declarative base, the Flask extension, and the column types that models share.

The web process has three connection pools. `db.session` runs transactions, at READ COMMITTED on MySQL because senders
that claim work at the same time deadlock under REPEATABLE READ. On the connections of `AUTOCOMMIT` every
statement commits itself, since a COMMIT of its own would be half of the time of a quick one. `ROWS` is for the
transactions that insert registrations, those of several requests in one (see `group_commit`).
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar, cast

import pymysql
from flask_sqlalchemy import SQLAlchemy
from pymysql.constants.CR import CR_CONN_HOST_ERROR
from pymysql.constants.ER import (
    BAD_FIELD_ERROR,
    LOCK_DEADLOCK,
    NO_DEFAULT_FOR_FIELD,
    TRUNCATED_WRONG_VALUE,
)
from sqlalchemy import (
    BigInteger,
    Connection,
    CursorResult,
    DateTime,
    Dialect,
    Engine,
    ExceptionContext,
    Executable,
    Integer,
    LargeBinary,
    MetaData,
    String,
    event,
    func,
    select,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.orm import DeclarativeBase, Session, SessionTransaction
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.types import TypeDecorator, TypeEngine

AUTOCOMMIT, ROWS = "autocommit", "rows"
CONNECT_SECONDS = 3
STATEMENT_SECONDS = 10
QUICK_SECONDS = 4
"""What a statement about a few rows may take while somebody waits for it. Longer than it waits for a lock."""
SLOW_SECONDS, AWAY_SECONDS = 0.5, 2.0
"""After so slow a failure to connect, nobody tries for a while."""
REFUSED_SECONDS = 0.5
"""After a quicker failure, nobody tries for a moment: getting ready for TLS is 45 ms of work for each connection."""
LOCK_SECONDS = 3
TRIES = 3
_FEW_ROWS, _IS_NEW, _LIMIT = "few rows", "is new", "limit"
"""What a session, and what a connection of a pool, is remembered to be or to have."""
_FAULTS = {BAD_FIELD_ERROR, NO_DEFAULT_FOR_FIELD, TRUNCATED_WRONG_VALUE}

Result = TypeVar("Result")

LARGE_ID = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only in a column of type INTEGER."""


class Base(DeclarativeBase):
    """The base of all models; constraints get names, so that migrations can change them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


db = SQLAlchemy(model_class=Base)


def ascii_string(length: int) -> String:
    """Return the type of a text that is ASCII and compared byte by byte on every database."""
    return String(length).with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC; databases drop the zone, so a naive value is refused rather than guessed at."""

    impl = DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql")
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store in UTC without the zone. Raises ValueError for a naive value."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("A time without a zone cannot be stored.")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the time with its zone, UTC."""
        return None if value is None else value.replace(tzinfo=UTC)


class UuidBytes(TypeDecorator[uuid.UUID]):
    """A UUID in sixteen bytes."""

    impl = LargeBinary(16).with_variant(mysql.BINARY(16), "mysql")
    cache_ok = True

    def process_bind_param(self, value: uuid.UUID | None, dialect: Dialect) -> bytes | None:
        """Store the bytes."""
        return None if value is None else value.bytes

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> uuid.UUID | None:
        """Return the UUID."""
        return None if value is None else uuid.UUID(bytes=value)


class Names(TypeDecorator[StrEnum]):
    """One of the names of an enumeration, as ASCII text."""

    impl = String(16)
    cache_ok = True

    def __init__(self, names: type[StrEnum]) -> None:
        super().__init__()
        self.names = names

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[str]:
        """Return the type of an ASCII text."""
        return dialect.type_descriptor(ascii_string(16))

    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:
        """Return the member of the enumeration."""
        return None if value is None else self.names(value)


def repeatable(engine: Engine, work: Callable[[Connection], Result]) -> Result:
    """Do work on a connection that may be dead, and again on a new one if it was or had to give way to another.

    Cheaper than to ask each connection first whether it lives, and without the moment between answer and use; for
    work that may be done twice.
    """
    begun = time.monotonic()
    for _ in range(TRIES - 1):
        try:
            with engine.connect() as connection:
                return work(connection)
        except DBAPIError as error:
            if not (_was_dead(error, begun) or is_deadlock(error)):
                raise
    with engine.connect() as connection:
        return work(connection)


def commit_step(step: Callable[[Session], Result], tries: int = TRIES) -> Result:
    """Take one step in `db.session` and commit it; again when the database had to choose between it and another.

    A step that fails leaves nothing behind in the session.
    """
    try:
        done = step(db.session())
        db.session.commit()
    except Exception as error:
        db.session.rollback()
        if tries == 1 or not is_deadlock(error):
            raise
        return commit_step(step, tries - 1)
    return done


def commit_steps(step: Callable[..., bool]) -> None:
    """Take a step again and again, each time in a transaction of its own, until it says that there is no more.

    From the second time on it is told `begun=True`.
    """
    if commit_step(step):
        while commit_step(partial(step, begun=True)):
            pass


def expect_few_rows(session: Session) -> None:
    """Let no statement take longer than `QUICK_SECONDS`, in the transactions that a session begins from now on.

    For an engine that an `Outage` watches; SQLite waits only for a lock, and as long as ever.
    """
    session.info[_FEW_ROWS] = True


@event.listens_for(Session, "after_begin")
def _limit(session: Session, _: SessionTransaction, connection: Connection) -> None:
    if session.info.get(_FEW_ROWS) and connection.dialect.name != "sqlite":
        raw = _raw(connection)
        raw._read_timeout = min(raw._read_timeout, QUICK_SECONDS)


def _raw(connection: Connection) -> Any:
    return connection.connection.dbapi_connection


def close_session(_: BaseException | None) -> None:
    """Give back what `db.session` holds when a request ends; a connection that is lost by then costs nobody an answer.

    Its rollback would fail where no error handler is left, after the answer was made and what it tells was committed.
    """
    with suppress(DBAPIError):
        db.session.remove()


def database_time(session: Session) -> datetime:
    """Return the time by the database's clock, which all machines share; on SQLite it is this machine's."""
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    there: datetime = session.execute(select(func.utc_timestamp(6))).scalar_one()
    return there.replace(tzinfo=UTC)


def is_deadlock(error: Exception) -> bool:
    """Return whether two transactions waited for each other and this one had to give way; it may be tried again."""
    return code_of(error) == LOCK_DEADLOCK


def is_fault(error: Exception) -> bool:
    """Return whether a statement is to blame, where PyMySQL raises the same as of a server that is away."""
    return code_of(error) in _FAULTS


def code_of(error: Exception) -> int | str | None:
    """Return the database's own code of an error, or the sentence of SQLite, which has none."""
    original = getattr(error, "orig", None)
    return original.args[0] if original is not None and original.args else None


def _was_dead(error: DBAPIError, begun: float) -> bool:
    """Return whether an error means a dead connection; one that was waited for means a hanging database."""
    return error.connection_invalidated and time.monotonic() - begun <= SLOW_SECONDS


def rows_matched(session: Session, statement: Executable, parameters: Mapping[str, Any] | None = None) -> int:
    """Execute an UPDATE and return how many rows it was about. Objects that the session has loaded do not see it."""
    unseen = {"synchronize_session": False}
    return cast("CursorResult[Any]", session.execute(statement, parameters, execution_options=unseen)).rowcount


def engine_options(
    url: str, *, pool_size: int, autocommit: bool = False, careful: bool = True, seconds: float = STATEMENT_SECONDS
) -> dict[str, Any]:
    """Return the options of one engine and its pool of `pool_size` connections; a statement may take so many seconds.

    On SQLite, where nothing but a lock takes long, it is always STATEMENT_SECONDS.
    A connection is rolled back before it is put back; `careful` off saves that round trip, for those who end every
    transaction themselves. So does `autocommit`. Parameters stay out of error messages, because they hold addresses.
    """
    options: dict[str, Any] = {"url": url, "hide_parameters": True, "pool_size": pool_size}
    options |= {"max_overflow": 0, "pool_timeout": CONNECT_SECONDS, "pool_recycle": 1800}
    if autocommit or not careful:
        options["pool_reset_on_return"] = None
    if autocommit:
        options |= {"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True}
    if make_url(url).get_backend_name() == "sqlite":
        return options | {"connect_args": {"timeout": STATEMENT_SECONDS}}
    options.setdefault("isolation_level", "READ COMMITTED")
    return options | {
        "connect_args": {
            "charset": "utf8mb4",
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": seconds,
            "write_timeout": seconds,
            "init_command": f"SET innodb_lock_wait_timeout = {LOCK_SECONDS}",
        }
    }


@event.listens_for(Engine, "connect")
def _prepare_sqlite(connection: Any, _: ConnectionPoolEntry) -> None:
    """Let readers and the one writer of an SQLite file work at the same time, and check foreign keys."""
    if isinstance(connection, sqlite3.Connection):
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")


@event.listens_for(Engine, "handle_error")
def _give_up_undecided(context: ExceptionContext) -> None:
    """Give a connection up whose COMMIT or ROLLBACK failed: its transaction may still be open, for whoever is next.

    Those have no statement; nor has a BEGIN or a fetch, and a connection on which one fails is no loss either.
    """
    if context.connection is not None and context.statement is None:
        context.is_disconnect, context.invalidate_pool_on_disconnect = True, False


class Outage:
    """What is known of a database that is away, shared by the engines that use it.

    After an attempt to connect that failed, or a ping or quick statement that was not answered in time, nobody tries to
    connect for a moment: requests would queue up behind a hanging database, each for as long as one may wait.
    """

    def __init__(self) -> None:
        self._ends_at = 0.0

    def watch(self, engine: Engine, *, ping: bool = False) -> None:
        """Let an engine fail fast.

        With `ping`, a connection that is dead is noticed before it is used, and replaced. SQLAlchemy's own
        `pool_pre_ping` would wait for that as long as for a statement.
        """
        event.listen(engine, "do_connect", self._connect)
        if ping:
            event.listen(engine, "checkout", self._ping)
        event.listen(engine, "checkout", _restore_limit)
        event.listen(engine, "handle_error", self._notice)

    def _connect(self, dialect: Dialect, entry: ConnectionPoolEntry, arguments: Any, named: dict[str, Any]) -> Any:
        """Wait for the handshake, and for what is set up after it, no longer than for the connection."""
        begun = time.monotonic()
        if begun < self._ends_at:
            raise pymysql.err.OperationalError(CR_CONN_HOST_ERROR, "The database was away a moment ago.")
        try:
            connection: Any = dialect.connect(*arguments, **{**named, "read_timeout": CONNECT_SECONDS})
        except Exception:
            is_slow = time.monotonic() - begun > SLOW_SECONDS
            self._begin(AWAY_SECONDS if is_slow else REFUSED_SECONDS)
            raise
        entry.info.update({_IS_NEW: True, _LIMIT: named["read_timeout"]})
        return connection

    def _ping(self, connection: Any, entry: ConnectionPoolEntry, _: PoolProxiedConnection) -> None:
        if entry.info.pop(_IS_NEW, False):
            return
        connection._read_timeout = CONNECT_SECONDS
        try:
            connection.ping(reconnect=False)
        except pymysql.err.Error as error:
            self._see(error)
            raise InvalidatePoolError from error

    def _notice(self, context: ExceptionContext) -> None:
        """Take note of a quick statement without an answer; another one may just have much to do."""
        if context.connection is not None and _raw(context.connection)._read_timeout <= QUICK_SECONDS:
            self._see(context.original_exception)

    def _see(self, error: BaseException) -> None:
        if _was_awaited(error):
            self._begin(AWAY_SECONDS)

    def _begin(self, seconds: float) -> None:
        self._ends_at = max(self._ends_at, time.monotonic() + seconds)


def _restore_limit(connection: Any, entry: ConnectionPoolEntry, _: PoolProxiedConnection) -> None:
    """Let a connection take as long as its engine allows. PyMySQL has one limit for handshake, pings and statements."""
    connection._read_timeout = entry.info[_LIMIT]


@event.listens_for(Engine, "handle_error")
def _keep_other_connections(context: ExceptionContext) -> None:
    """Give up the connection of a statement that took too long; that says nothing of the others."""
    if _was_awaited(context.original_exception):
        context.invalidate_pool_on_disconnect = False


def _was_awaited(error: BaseException) -> bool:
    """Return whether an answer of the database did not come in time."""
    return isinstance(error.__context__, TimeoutError)
