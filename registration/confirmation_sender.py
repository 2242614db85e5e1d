"""Sends the confirmation mails that are due, a few at a time, at the pace that all senders share."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session, sessionmaker

from . import confirmations, mailers, pacing
from .confirmations import Confirmation
from .flow import LOT_SECONDS
from .mailers import NO_DELIVERY, Mailer, Recipient, Verdict
from .tokens import Tokens

REST = timedelta(minutes=1)
"""How long to wait after a mail that the mail service held up or did not answer, or while it cannot be reached."""
LONGEST_WAIT_SECONDS = 1.0
"""How long the thread waits for the instant of a mail at most; broadcasts reserve no further ahead, unless the database
is slow."""
_DECIDED = {Verdict.ACCEPTED, Verdict.REFUSED}
_MAY_HAVE_LEFT = _DECIDED | {Verdict.UNKNOWN}


@dataclass
class ConfirmationSender:
    """Sends for one sender, in the thread that also looks at the broadcasts: these are not to wait for it for long."""

    sessions: sessionmaker[Session]
    mailer: Mailer
    tokens: Tokens
    rate_limit: float
    stopping: threading.Event

    def __post_init__(self) -> None:
        self._unsent: deque[Confirmation] = deque()
        self._taken_at = self._rest_until = datetime.min.replace(tzinfo=UTC)

    def send(self, now: datetime, most: int) -> None:
        """Send up to `most` mails; none while the pace has no instant for them soon. `now` is by the database's clock.

        The first that does not get through ends it, and what did not leave is given back.
        """
        begun = time.monotonic()
        self._give_back()
        if timedelta(0) < self._rest_until - now <= REST:  # more is what a wrong clock has left
            return
        self.stopping.wait(self._take(now, most))
        verdict = Verdict.ACCEPTED
        while self._unsent and verdict in _DECIDED and not self.stopping.is_set():
            verdict = self._call(self._unsent[0], now)
            if verdict in _MAY_HAVE_LEFT:
                self._unsent.popleft()
        if verdict is Verdict.THROTTLED:
            with self.sessions.begin() as session:
                pacing.slow_down(session, now=now.timestamp() + time.monotonic() - begun)
        elif verdict not in _DECIDED:
            self._rest_until = now + REST
        self._give_back()

    def _take(self, now: datetime, most: int) -> float:
        """Take mails that are due and reserve their turn; return the seconds to wait for it."""
        begun = time.monotonic()
        with self.sessions.begin() as session:
            if not confirmations.are_due(session, now):
                return 0.0
            rate = pacing.current_rate(session, limit=self.rate_limit, now=now.timestamp())
            if pacing.free_in(session, rate=rate, now=now.timestamp()) > LONGEST_WAIT_SECONDS:
                return 0.0
            limit = int(min(most, max(1.0, rate * LOT_SECONDS)))
            taken = confirmations.take(session, now, tokens=self.tokens, limit=limit)
            by_now = now.timestamp() + time.monotonic() - begun
            wait = pacing.reserve(session, len(taken), rate=rate, now=by_now) if taken else 0.0
            if wait > LONGEST_WAIT_SECONDS:  # others came first
                session.rollback()
                return 0.0
        self._unsent, self._taken_at = deque(taken), now
        return wait

    def _call(self, confirmation: Confirmation, now: datetime) -> Verdict:
        message = confirmations.compose(self.tokens.confirmation_url(confirmation.product_id, now))
        recipient = Recipient(NO_DELIVERY, confirmation.email, confirmation.product_id)
        (outcome,) = mailers.send(self.mailer, message, [recipient])
        return outcome.verdict

    def _give_back(self) -> None:
        """Give back what was taken and not sent; what the database does not take now is kept for the next time."""
        while self._unsent:
            with self.sessions.begin() as session:
                confirmations.give_back(session, self._unsent[0], self._taken_at, tokens=self.tokens)
            self._unsent.popleft()
