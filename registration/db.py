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

from flask_sqlalchemy import SQLAlchemy
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
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.types import TypeDecorator

AUTOCOMMIT, ROWS = "autocommit", "rows"
CONNECT_SECONDS = 3
STATEMENT_SECONDS = 10
QUICK_SECONDS = 4
"""What a statement about a few rows may take while somebody waits for it. Longer than it waits for a lock."""
SLOW_SECONDS = 0.5
"""A failure that took longer than this was waited for: the database hangs. A quicker one is a refusal."""
LOCK_SECONDS = 3
RENEW_SECONDS = 300
"""How old a connection may be when it is used. One that only reads does not notice that its server was replaced."""
TRIES = 3
_FAULTS = {BAD_FIELD_ERROR, NO_DEFAULT_FOR_FIELD, TRUNCATED_WRONG_VALUE}

Result = TypeVar("Result")

LARGE_ID = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only in a column of type INTEGER."""
LARGEST_ID = 2**63 - 1


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

    impl = ascii_string(16)
    cache_ok = True

    def __init__(self, names: type[StrEnum]) -> None:
        super().__init__()
        self.names = names

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
    """Return whether the statement itself is wrong; PyMySQL raises the same for that as for a server that is away."""
    return code_of(error) in _FAULTS


def code_of(error: Exception) -> int | str | None:
    """Return the database's own code of an error, or the sentence of SQLite, which has none."""
    original = getattr(error, "orig", None)
    return original.args[0] if original is not None and original.args else None


def _was_dead(error: DBAPIError, begun: float) -> bool:
    """Return whether an error means a dead connection; one that was waited for means a hanging database."""
    return error.connection_invalidated and time.monotonic() - begun <= SLOW_SECONDS


def rows_matched(session: Session, statement: Executable, parameters: Mapping[str, Any] | None = None) -> int:
    """Execute an UPDATE or DELETE and return how many rows its WHERE matched, changed or not.

    Objects that the session has loaded keep their old values.
    """
    unseen = {"synchronize_session": False}
    return cast("CursorResult[Any]", session.execute(statement, parameters, execution_options=unseen)).rowcount


def engine_options(
    url: str,
    *,
    pool_size: int,
    autocommit: bool = False,
    reset_on_return: bool = True,
    seconds: float = STATEMENT_SECONDS,
) -> dict[str, Any]:
    """Return the options of one engine and its pool of `pool_size` connections; a statement may take so many seconds.

    On SQLite, where nothing but a lock takes long, it is always STATEMENT_SECONDS.
    Without `reset_on_return` a connection is not rolled back when it goes back into the pool: one round trip less, for
    those who end every transaction themselves. `autocommit` needs none either. Parameters stay out of error messages,
    because they hold addresses.
    """
    options: dict[str, Any] = {"url": url, "hide_parameters": True, "pool_size": pool_size}
    options |= {"max_overflow": 0, "pool_timeout": CONNECT_SECONDS, "pool_recycle": RENEW_SECONDS}
    if autocommit or not reset_on_return:
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
