"""The figures of a broadcast as JSON: the same for the API and for the commands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from .models import Feedback
from .monitoring import Forecast, Progress


def of(progress: Progress, now: datetime) -> dict[str, Any]:
    """Return the figures of a broadcast."""
    end = progress.expected_end
    return {
        "status": progress.status,
        "reason": progress.reason,
        "broadcastId": progress.broadcast_id,
        "title": progress.title,
        "urgent": progress.urgent,
        "versions": progress.versions,
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


def of_forecast(forecast: Forecast, versions: str | None) -> dict[str, Any]:
    """Return what a broadcast would be; `versions` is its range as it was written."""
    return {
        "dryRun": True,
        "versions": versions,
        "recipients": forecast.recipients,
        "inRange": forecast.in_range,
        "unknown": forecast.unknown,
        "outside": forecast.outside,
        "optedOut": forecast.opted_out,
        "suppressed": forecast.suppressed,
        "unconfirmed": forecast.unconfirmed,
        "seconds": None if forecast.seconds is None else math.ceil(forecast.seconds),
    }


def of_feedback(accepted: int, counts: Mapping[Feedback, int]) -> dict[str, int]:
    """Return what became of the messages that the mail service accepted; each counts once, by the weightiest news."""
    return {
        "accepted": accepted,
        "delivered": counts[Feedback.DELIVERED],
        "delayed": counts[Feedback.DELAYED],
        "softBounced": counts[Feedback.SOFT_BOUNCE],
        "hardBounced": counts[Feedback.HARD_BOUNCE],
        "complained": counts[Feedback.COMPLAINED],
        "rejected": counts[Feedback.REJECTED],
    }


def iso(instant: datetime | None) -> str | None:
    """Return a time in UTC as ISO 8601, to the second."""
    return None if instant is None else f"{instant.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
