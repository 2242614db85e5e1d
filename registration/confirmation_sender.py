"""Sends the confirmation mails that are due, a few at a time, at the pace that all senders share."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session, sessionmaker

from . import confirmations, mailers, pacing
from .confirmations import Confirmation
from .flow import LOT_SECONDS, RESTING_SECONDS
from .mailers import Mailer, Recipient, Verdict
from .tokens import Tokens

REST_SECONDS = 60.0
"""How long no mail is tried after one that the mail service held up, did not answer or could not be reached for."""


@dataclass
class ConfirmationSender:
    """Sends for one sender, in the thread that also looks at the broadcasts: these are not to wait for it for long."""

    sessions: sessionmaker[Session]
    mailer: Mailer
    tokens: Tokens
    rate_limit: float
    stopping: threading.Event

    def __post_init__(self) -> None:
        self._rest_until = 0.0
        self._left: list[tuple[Confirmation, datetime]] = []

    def send(self, now: datetime, most: int) -> None:
        """Send up to `most` mails; none while all rest. `now` is by the database's clock.

        The first that does not get through ends it, and what is left is given back.
        """
        self._give_back_left()
        if time.monotonic() < self._rest_until:
            return
        taken, wait = self._take(now, most)
        self.stopping.wait(wait)
        for position, confirmation in enumerate(taken):
            verdict = None if self.stopping.is_set() else self._call(confirmation, now)
            if verdict in (Verdict.ACCEPTED, Verdict.REFUSED):
                continue
            if verdict not in (None, Verdict.THROTTLED):
                self._rest_until = time.monotonic() + REST_SECONDS
            may_have_left = verdict is Verdict.UNKNOWN
            self._left += [(each, now) for each in taken[position + may_have_left :]]
            self._give_back_left()
            if verdict is Verdict.THROTTLED:
                with self.sessions.begin() as session:
                    pacing.slow_down(session, now=now.timestamp())
            break

    def _take(self, now: datetime, most: int) -> tuple[Sequence[Confirmation], float]:
        """Take mails that are due and reserve their turn; return them and the seconds to wait for it."""
        with self.sessions.begin() as session:
            if not confirmations.are_due(session, now):
                return [], 0.0
            rate = pacing.current_rate(session, limit=self.rate_limit, now=now.timestamp())
            if pacing.free_in(session, rate=rate, now=now.timestamp()) > RESTING_SECONDS:
                return [], 0.0
            limit = int(min(most, max(1.0, rate * LOT_SECONDS)))
            if not (taken := confirmations.take(session, now, tokens=self.tokens, limit=limit)):
                return [], 0.0
            return taken, pacing.reserve(session, len(taken), rate=rate, now=now.timestamp())

    def _call(self, confirmation: Confirmation, now: datetime) -> Verdict:
        message = confirmations.compose(self.tokens.confirmation_url(confirmation.product_id, now))
        recipient = Recipient(0, confirmation.email, confirmation.product_id)
        (outcome,) = mailers.send(self.mailer, message, [recipient])
        return outcome.verdict

    def _give_back_left(self) -> None:
        """Give back what was taken and not sent; what the database does not take now is kept for the next time."""
        while self._left:
            confirmation, taken_at = self._left[0]
            with self.sessions.begin() as session:
                confirmations.give_back(session, confirmation, taken_at, tokens=self.tokens)
            self._left.pop(0)
