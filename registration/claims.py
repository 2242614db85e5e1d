"""Claims: which deliveries leave next, in which calls, and when; each claim in one transaction with its reservation."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session, sessionmaker

from . import broadcasts, bulk_turns, ledger, pacing
from .bulk_turns import BulkTurn
from .clock import Clock
from .flow import AHEAD_SECONDS, Flow
from .ledger import Batch
from .models import BroadcastStatus
from .trouble import Troubles

AGAIN_SECONDS = 0.05
"""How long there is no other attempt, at the most, after one that came too early."""


@dataclass(frozen=True)
class Call:
    """A batch, and the instant at which it is to be sent, in seconds of `time.monotonic`."""

    broadcast_id: int
    batch: Batch
    due_at: float
    bulk_turn: BulkTurn | None = None

    @property
    def is_scarce(self) -> bool:
        """Whether it is one of the scarce bulk calls: those have turns of their own, and do not wait for the pace."""
        return self.bulk_turn is not None


class Claims:
    """Makes the claims of one sender, one after another.

    `largest_batch` tells by a broadcast's id how many recipients one call for it takes at most. `not_before` is when
    there may be something to claim again, in seconds of `time.monotonic`; 0 for now.
    """

    def __init__(
        self,
        sessions: sessionmaker[Session],
        flow: Flow,
        troubles: Troubles,
        clock: Clock,
        largest_batch: Callable[[int], int],
    ) -> None:
        self.not_before = 0.0
        self._sessions = sessions
        self._flow = flow
        self._troubles = troubles
        self._clock = clock
        self._largest_batch = largest_batch

    def take(self, sending: Sequence[int]) -> list[Call]:
        """Claim deliveries of the first of some broadcasts that has any, and reserve their instants; return calls."""
        now = time.monotonic()
        ready = [broadcast_id for broadcast_id in sending if self._troubles.of(broadcast_id).may_claim(now)]
        for broadcast_id in ready:
            before = self._flow.largest
            self._flow.largest = self._largest_batch(broadcast_id)
            is_probe = self._troubles.of(broadcast_id).is_unanswered
            lot = self._claim_probe(broadcast_id) if is_probe else self._claim(broadcast_id)
            if lot:
                return lot
            self._flow.largest = before
            if lot is None:
                return []
        if len(ready) < len(sending):
            self.not_before = time.monotonic() + AGAIN_SECONDS
        return []

    def _claim(self, broadcast_id: int, tried_at_most: int | None = None) -> list[Call] | None:
        """Claim and reserve what the rate allows, or for a probe one who was tried so often at most.

        Return None when it is too early for anybody.
        """
        begun = time.monotonic()
        with self._sessions.begin() as session:
            bulk_call = self._claim_bulk_call(session, broadcast_id) if tried_at_most is None else []
            lot = bulk_call or self._claim_and_reserve(session, broadcast_id, tried_at_most)
        if lot:
            self._flow.note_claim(time.monotonic() - begun)
        return lot

    def _claim_probe(self, broadcast_id: int) -> list[Call] | None:
        """Claim and reserve one call of one recipient, of those who were tried least: it may be another copy."""
        with self._sessions.begin() as session:
            most = ledger.attempts_of_next(session, broadcast_id)
        for tried in range(0 if most is None else most + 1):
            if lot := self._claim(broadcast_id, tried_at_most=tried):
                self._troubles.of(broadcast_id).begin_probe(lot[0].batch.lease)
            if lot or lot is None:
                return lot
        return []

    def _claim_bulk_call(self, session: Session, broadcast_id: int) -> list[Call]:
        """Claim for the one bulk call a second where they are scarce; it leaves beside the calls at the pace."""
        if not self._flow.has_scarce_bulk_calls:
            return []
        now, begun, rate = self._clock.time(), time.monotonic(), self._flow.steady_rate
        earliest = self._flow.claim_seconds
        found = bulk_turns.find(session, now=now.timestamp() + earliest, ahead=AHEAD_SECONDS)
        if found is None or broadcasts.status_of(session, broadcast_id) is not BroadcastStatus.SENDING:
            return []
        turn, wait = found[0], earliest + found[1]
        batch = ledger.claim(session, broadcast_id, lease=uuid.uuid4().hex, limit=self._flow.largest, now=now)
        if batch is None:
            return []
        if len(batch.recipients) < 2:  # that is no bulk call, and the turn stays for the next
            return [Call(broadcast_id, batch, begun + self._reserve(session, batch, rate, now, begun))]
        bulk_turns.take(session, turn, len(batch.recipients), rate=rate, at=now.timestamp() + wait)
        return [Call(broadcast_id, batch, begun + wait, turn)]

    def _claim_and_reserve(self, session: Session, broadcast_id: int, tried_at_most: int | None) -> list[Call] | None:
        """Claim and reserve for calls at the pace, or for one of one recipient."""
        now, begun, rate = self._clock.time(), time.monotonic(), self._flow.steady_rate
        too_early = pacing.free_in(session, rate=rate, now=now.timestamp()) - self._flow.ahead_seconds
        if too_early > 0:
            self.not_before = time.monotonic() + min(too_early, AGAIN_SECONDS)
            return None
        if broadcasts.status_of(session, broadcast_id) is not BroadcastStatus.SENDING:
            return []
        largest = self._flow.recipients_a_call()
        lease, limit = uuid.uuid4().hex, self._flow.lot() if tried_at_most is None else 1
        batch = ledger.claim(session, broadcast_id, lease=lease, limit=limit, now=now, tried_at_most=tried_at_most)
        if batch is None:
            return []
        if batch.is_retry:
            self._flow.keep_apart(for_retry=True)
        wait = self._reserve(session, batch, rate, now, begun)
        if wait > self._flow.longest_wait_seconds:  # others came first
            session.rollback()
            self.not_before = time.monotonic() + AGAIN_SECONDS
            return None
        parts = [batch.recipients[start : start + largest] for start in range(0, len(batch.recipients), largest)]
        return [
            Call(broadcast_id, Batch(batch.lease, part), begun + wait + number * largest / rate)
            for number, part in enumerate(parts)
        ] or [Call(broadcast_id, batch, begun)]

    def _reserve(self, session: Session, batch: Batch, rate: float, now: datetime, begun: float) -> float:
        """Reserve the sending of a batch from when its claim, which began now, will be committed.

        Return the seconds to wait from `now`, which is `begun` by the other clock.
        """
        earliest = max(self._flow.claim_seconds, time.monotonic() - begun)
        return earliest + pacing.reserve(session, len(batch.recipients), rate=rate, now=now.timestamp() + earliest)
