"""A database that is away or hangs: how long anybody waits for it, and when nobody tries."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import pymysql
from pymysql.constants.CR import CR_CONN_HOST_ERROR, CR_SSL_CONNECTION_ERROR
from pymysql.constants.ER import OPTION_PREVENTS_STATEMENT
from sqlalchemy import Connection, Dialect, Engine, ExceptionContext, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from .db import CONNECT_SECONDS, QUICK_SECONDS, SLOW_SECONDS

AWAY_SECONDS, REFUSED_SECONDS = 2.0, 0.5
"""How long nobody tries to connect: after a failure that was waited for, and after a quicker one, because getting ready
for TLS is 45 ms of work for each connection."""
_FEW_ROWS, _IS_NEW, _LIVED_AT, _LIMIT = "few rows", "is new", "lived at", "limit"
"""What a session, and what a connection of a pool, is remembered to be or to have."""

log = logging.getLogger(__name__)


class Outage:
    """What is known of a database that is away, shared by the engines that use it.

    After an attempt to connect that failed, or a ping or quick statement that was not answered in time, nobody tries to
    connect for a moment: requests would queue up behind a hanging database, each for as long as one may wait.

    After any statement that was not answered in time, each older connection has to prove that it lives. A failover
    leaves all of a pool dead without a word, and to find that out by statements would take minutes.
    """

    def __init__(self) -> None:
        self._ends_at = 0.0
        self._doubted_at = -math.inf

    def watch(self, engine: Engine, *, ping: bool = False) -> None:
        """Let an engine fail fast.

        With `ping`, a connection that is dead is noticed before it is used, and replaced, without a doubt too.
        SQLAlchemy's own `pool_pre_ping` would wait for that as long as for a statement.
        """
        event.listen(engine, "do_connect", self._connect)
        event.listen(engine, "checkout", self._ping if ping else self._ping_in_doubt)
        event.listen(engine, "checkout", _restore_limit)
        event.listen(engine, "handle_error", self._notice)

    def _connect(self, dialect: Dialect, entry: ConnectionPoolEntry, arguments: Any, named: dict[str, Any]) -> Any:
        """Wait for the handshake, and for what is set up after it, no longer than for the connection."""
        begun = time.monotonic()
        if begun < self._ends_at:
            raise pymysql.err.OperationalError(CR_CONN_HOST_ERROR, "The database was away a moment ago.")
        try:
            connection: Any = dialect.connect(*arguments, **{**named, "read_timeout": CONNECT_SECONDS})
        except Exception as error:
            is_slow = time.monotonic() - begun > SLOW_SECONDS
            self._begin(AWAY_SECONDS if is_slow else REFUSED_SECONDS)
            if isinstance(error, OSError):  # what PyMySQL raises before it tries
                log.error("certificates that DB_CONN_STR names could not be read", extra={"error": str(error)})
                raise pymysql.err.OperationalError(CR_SSL_CONNECTION_ERROR, f"Certificates: {error}") from error
            raise
        entry.info.update({_IS_NEW: True, _LIVED_AT: time.monotonic(), _LIMIT: named["read_timeout"]})
        return connection

    def _ping(self, connection: Any, entry: ConnectionPoolEntry, _: PoolProxiedConnection) -> None:
        if not entry.info.pop(_IS_NEW, False):
            self._ask(connection, entry)

    def _ping_in_doubt(self, connection: Any, entry: ConnectionPoolEntry, _: PoolProxiedConnection) -> None:
        if entry.info[_LIVED_AT] <= self._doubted_at:
            self._ask(connection, entry)

    def _ask(self, connection: Any, entry: ConnectionPoolEntry) -> None:
        """Ask a connection whether it lives; if not, none of its pool that is as old is used again."""
        connection._read_timeout = CONNECT_SECONDS
        try:
            connection.ping(reconnect=False)
        except pymysql.err.Error as error:
            self._see(error, is_away=True)
            raise InvalidatePoolError from error
        entry.info[_LIVED_AT] = time.monotonic()

    def _notice(self, context: ExceptionContext) -> None:
        """Take note of a statement without an answer. Unless it is a quick one, it may just have much to do."""
        connection = context.connection
        is_quick = connection is not None and _raw(connection)._read_timeout <= QUICK_SECONDS
        self._see(context.original_exception, is_away=is_quick)

    def _see(self, error: BaseException, *, is_away: bool) -> None:
        if _was_awaited(error):
            self._doubted_at = time.monotonic()
            if is_away:
                self._begin(AWAY_SECONDS)

    def _begin(self, seconds: float) -> None:
        self._ends_at = max(self._ends_at, time.monotonic() + seconds)


def _restore_limit(connection: Any, entry: ConnectionPoolEntry, _: PoolProxiedConnection) -> None:
    """Let a connection take as long as its engine allows. PyMySQL has one limit for handshake, pings and statements."""
    connection._read_timeout = entry.info[_LIMIT]


@event.listens_for(Engine, "handle_error")
def _give_up_read_only_server(context: ExceptionContext) -> None:
    """Give up the connections of a pool whose server lets nobody write any more: its name may lead to another by now.

    Who connects in the seconds after a blue/green switchover may still be led to the old one, and would stay there
    (https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/blue-green-deployments-switching.html). One that was made
    just now stays: while nobody may write anywhere, each attempt would cost another.
    """
    if context.connection is None or context.original_exception.args[:1] != (OPTION_PREVENTS_STATEMENT,):
        return
    if time.monotonic() - context.connection.info.get(_LIVED_AT, -math.inf) > AWAY_SECONDS:
        context.is_disconnect = context.invalidate_pool_on_disconnect = True


@event.listens_for(Engine, "handle_error")
def _keep_other_connections(context: ExceptionContext) -> None:
    """Give up the connection of a statement that took too long; whether the others are dead too, they will tell."""
    if _was_awaited(context.original_exception):
        context.invalidate_pool_on_disconnect = False


def _was_awaited(error: BaseException) -> bool:
    """Return whether an answer of the database did not come in time."""
    return isinstance(error.__context__, TimeoutError)


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
