"""Ledgers for tests, and steps in them that are committed. All need an application context."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import sessionmaker

from registration import broadcasts, ledger, monitoring
from registration.db import db
from registration.ledger import Batch
from registration.mailers import Outcome, Verdict
from registration.models import Delivery
from registration.monitoring import Progress

from . import factories

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
AFTER_LEASE = NOW + ledger.LEASE + timedelta(seconds=1)
ACCEPTED = Outcome(Verdict.ACCEPTED, message_id="0100-1")
REFUSED = Outcome(Verdict.REFUSED, reason="No such address.")
THROTTLED = Outcome(Verdict.THROTTLED, reason="Slow down.")
HELD = Outcome(Verdict.HELD, reason="Paused.")
UNKNOWN = Outcome(Verdict.UNKNOWN, reason="No answer.")


def commit(step: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    with sessionmaker(db.engine).begin() as session:
        return step(session, *arguments, **named)


def filled(number: int) -> int:
    """Start a broadcast to new registrations and fill its ledger."""
    factories.register(number)
    broadcast_id = factories.start_broadcast()
    while commit(ledger.fill, broadcast_id):
        pass
    return broadcast_id


def claim(broadcast_id: int, limit: int = 50, *, lease: str = "one", now: datetime = NOW) -> Batch | None:
    return commit(ledger.claim, broadcast_id, lease=lease, limit=limit, now=now)


def settle(batch: Batch | None, *outcomes: Outcome) -> None:
    assert batch is not None
    commit(ledger.settle, batch, outcomes, NOW)


def lines(broadcast_id: int) -> list[Delivery]:
    db.session.rollback()
    rows = db.session.execute(select(Delivery).filter_by(broadcast_id=broadcast_id).order_by(Delivery.id))
    db.session.expire_all()
    return list(rows.scalars())


def statuses(broadcast_id: int) -> Counter[str]:
    return Counter(delivery.status.value for delivery in lines(broadcast_id))


def progress(broadcast_id: int, now: datetime = NOW, **limits: float) -> Progress:
    return commit(monitoring.progress, broadcast_id, now, **limits)


def end(broadcast_id: int) -> None:
    """Cancel a broadcast, and see its end."""
    commit(broadcasts.cancel, broadcast_id)
    while commit(ledger.fill, broadcast_id) or commit(broadcasts.cancel_rest, broadcast_id, NOW):
        pass
    assert commit(broadcasts.finish, broadcast_id, NOW)
