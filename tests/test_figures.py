"""The figures of a broadcast as JSON."""

from __future__ import annotations

import json
from datetime import timedelta, timezone

from registration import figures
from registration.models import BroadcastStatus, Feedback

from .factories import NOON, progress


def test_they_can_be_written_as_json_and_add_up() -> None:
    written = json.loads(json.dumps(figures.of(progress(), NOON)))

    assert (written["broadcastId"], written["status"], written["rate"]) == (7, "sending", 14.0)
    ended = sum(written[name] for name in ("sent", "failed", "skipped", "cancelled"))
    assert ended + written["remaining"] == written["recipients"]


def test_the_end_is_told_as_a_time_and_in_seconds() -> None:
    written = figures.of(progress(), NOON + timedelta(seconds=0.5))

    assert (written["secondsLeft"], written["expectedEnd"]) == (312, "2026-11-23T12:05:12Z")
    assert figures.of(progress(), NOON + timedelta(hours=1))["secondsLeft"] == 0


def test_what_is_not_known_is_null() -> None:
    written = figures.of(progress(status=BroadcastStatus.PAUSED, expected_end=None), NOON)

    assert (written["secondsLeft"], written["expectedEnd"], written["finishedAt"]) == (None, None, None)


def test_a_time_is_in_utc() -> None:
    assert figures.iso(NOON.astimezone(timezone(timedelta(hours=5)))) == "2026-11-23T12:00:00Z"


def test_each_accepted_message_counts_once_by_what_became_of_it() -> None:
    counts = dict(zip(Feedback, (1, 2, 3, 4, 5, 6), strict=True))

    assert figures.of_feedback(30, counts) == {
        "accepted": 30,
        "delivered": 2,
        "delayed": 1,
        "softBounced": 3,
        "hardBounced": 4,
        "complained": 5,
        "rejected": 6,
    }
