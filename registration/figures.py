"""How far a broadcast has come, as JSON: the same for the API and for the commands."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from .broadcasts import Progress


def of(progress: Progress, now: datetime) -> dict[str, Any]:
    """Return the figures of a broadcast."""
    end = progress.expected_end
    return {
        "status": progress.status,
        "reason": progress.reason,
        "broadcastId": progress.broadcast_id,
        "title": progress.title,
        "urgent": progress.urgent,
        "recipients": progress.recipients,
        "sent": progress.sent,
        "failed": progress.failed,
        "skipped": progress.skipped,
        "cancelled": progress.cancelled,
        "remaining": progress.remaining,
        "rate": round(progress.rate, 1),
        "secondsLeft": None if end is None else max(0, math.ceil((end - now).total_seconds())),
        "expectedEnd": iso(end),
        "createdAt": iso(progress.created_at),
        "resumeAt": iso(progress.resume_at),
        "finishedAt": iso(progress.finished_at),
    }


def iso(instant: datetime | None) -> str | None:
    """Return a time in UTC as ISO 8601, to the second."""
    return None if instant is None else f"{instant.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
