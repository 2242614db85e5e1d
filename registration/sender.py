"""The loop that sends: claim, commit, pace, send, settle, commit."""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from . import broadcasts, pacing, registrations
from .broadcasts import Batch
from .mailers import Mailer, Outcome, Verdict
from .messages import Message

IDLE_SECONDS = 0.05
"""Between two looks for work; the longest that a broadcast waits for an idle sender."""
TROUBLE_SECONDS = 1.0
BACK_OFF_SECONDS = 1.0
SETTLE_SECONDS = 8.0
"""How long settled outcomes are kept in hand while the database is in trouble."""
SLOWEST_RATE = 1.0
"""Recipients a second while the mail service does not tell its rate: that of an SES account in the sandbox."""
_KNOWN_RATE_SECONDS, _UNKNOWN_RATE_SECONDS = 300.0, 10.0
_COUNT_SECONDS, _FORGET_SECONDS = 60.0, 3600.0
_COUNT_MARGIN = timedelta(minutes=2)

log = logging.getLogger(__name__)


@dataclass
class Sender:
    """Sends every broadcast that is under way, one batch after another, until it is told to stop.

    `sending_rate` is the operator's own limit in recipients a second; 0 leaves it to the mail service.
    """

    sessions: sessionmaker[Session]
    mailer: Mailer
    sending_rate: float = 0.0
    ip_retention: timedelta = timedelta(days=90)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._granted_rate: float | None = None
        self._next: dict[str, float] = {}
        self._message_of = lru_cache(maxsize=8)(self._load_message)

    def run(self) -> None:
        """Work until `stop`; the batch in hand is finished first. No failure ends the loop."""
        log.info("the sender started")
        while not self.stopping.is_set():
            try:
                pause = 0.0 if self.step() else IDLE_SECONDS
            except SQLAlchemyError:
                log.exception("the sender waits for the database")
                pause = TROUBLE_SECONDS
            except Exception:
                log.exception("the sender failed and tries again")
                pause = TROUBLE_SECONDS
            self.stopping.wait(pause)
        log.info("the sender stopped")

    def stop(self) -> None:
        """Ask the loop to end.

        Safe in a signal handler unless `run` is in the main thread: the handler would then wait for the event's lock
        that the thread it interrupted holds.
        """
        self.stopping.set()

    def step(self) -> bool:
        """Do one piece of work for the oldest broadcast that has any; return whether there was any."""
        self._keep_house()
        with self.sessions.begin() as session:
            ids = broadcasts.underway(session, self.now())
        return any(self._advance(broadcast_id) for broadcast_id in ids)

    def _advance(self, broadcast_id: int) -> bool:
        """Fill one chunk of the ledger and send one batch, or end the broadcast."""
        rate = self._rate()
        with self.sessions.begin() as session:
            filled = broadcasts.fill(session, broadcast_id)
        with self.sessions.begin() as session:
            limit = pacing.batch_size(rate, self.mailer.largest_batch)
            batch = broadcasts.claim(session, broadcast_id, lease=uuid.uuid4().hex, limit=limit, now=self.now())
        if batch is not None:
            self._send(broadcast_id, batch, rate)
            return True
        with self.sessions.begin() as session:
            expired = broadcasts.expire(session, broadcast_id, self.now())
            finished = broadcasts.finish(session, broadcast_id, self.now())
        if finished:
            log.info("a broadcast has been sent", extra={"broadcast": broadcast_id})
        return filled or expired or finished

    def _send(self, broadcast_id: int, batch: Batch, rate: float) -> None:
        if not batch.recipients:
            return
        message = self._message_of(broadcast_id)
        if self.stopping.wait(self._reserve(len(batch.recipients), rate)):
            with self.sessions.begin() as session:
                broadcasts.release(session, batch)
            return
        outcomes = self.mailer.send(message, batch.recipients)
        self._settle(batch, outcomes)
        self._heed(broadcast_id, outcomes)

    def _settle(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        """Write the outcomes down, again if the database fails: what is not written down is sent twice."""
        give_up = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                with self.sessions.begin() as session:
                    return broadcasts.settle(session, batch, outcomes, self.now())
            except DBAPIError:
                if time.monotonic() > give_up:
                    raise
                log.warning("outcomes could not be written down yet", extra={"lease": batch.lease})
                time.sleep(TROUBLE_SECONDS)

    def _heed(self, broadcast_id: int, outcomes: Sequence[Outcome]) -> None:
        """Slow down or rest when the outcomes ask for it."""
        held = next((outcome for outcome in outcomes if outcome.verdict is Verdict.HELD), None)
        with self.sessions.begin() as session:
            if held is not None and held.reason is not None:
                resume_at = self.now() + broadcasts.HOLD
                broadcasts.pause(session, broadcast_id, reason=held.reason, resume_at=resume_at)
                log.warning("a broadcast rests: the mail service holds it up", extra={"broadcast": broadcast_id})
            elif any(outcome.verdict in (Verdict.THROTTLED, Verdict.UNKNOWN) for outcome in outcomes):
                pacing.back_off(session, BACK_OFF_SECONDS, now=self.now().timestamp())

    def _reserve(self, messages: int, rate: float) -> float:
        with self.sessions.begin() as session:
            return pacing.reserve(session, messages, rate=rate, now=self.now().timestamp())

    def _rate(self) -> float:
        """Return the recipients a second to send: the lower of the operator's limit and the mail service's."""
        if self._is_due("rate", _UNKNOWN_RATE_SECONDS if self._granted_rate is None else _KNOWN_RATE_SECONDS):
            self._granted_rate = self.mailer.sending_rate()
        granted = SLOWEST_RATE if self._granted_rate is None else self._granted_rate
        return min(granted, self.sending_rate or math.inf)

    def _load_message(self, broadcast_id: int) -> Message:
        with self.sessions.begin() as session:
            return broadcasts.message_of(session, broadcast_id)

    def _keep_house(self) -> None:
        """Keep the count of registrations short, and forget IP addresses after their time."""
        if self._is_due("count", _COUNT_SECONDS):
            with self.sessions.begin() as session:
                registrations.remember_count(session, before=self.now() - _COUNT_MARGIN)
        if self._is_due("forget", _FORGET_SECONDS):
            with self.sessions.begin() as session:
                windows = registrations.ip_address_windows(session)
            for window in windows:
                with self.sessions.begin() as session:
                    registrations.forget_ip_addresses(session, window=window, before=self.now() - self.ip_retention)

    def _is_due(self, chore: str, seconds: float) -> bool:
        """Return whether a chore was last due at least this long ago, and take it as done now."""
        if time.monotonic() < self._next.get(chore, 0.0):
            return False
        self._next[chore] = time.monotonic() + seconds
        return True
