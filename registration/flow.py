"""The flow of calls out of one process: how many recipients each has, how many there are at once, when each leaves.

What all senders share, the account's rate, is in `pacing`; nothing here touches the database.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Collection
from statistics import fmean, median

from . import pacing

AHEAD_SECONDS, LOT_SECONDS = 0.25, 0.2
"""A call is claimed at most the first before it may leave, and one claim takes what the rate allows in the second. So a
pause takes effect within the sum of both. Where the database is slow, both are longer by what a claim takes."""
LONGEST_CLAIM_SECONDS, LOT_A_CLAIM = 2.0, 1.2
"""Up to where that is so, and how much longer than a claim what it takes lasts, so that the next one comes in time."""
LARGEST_LOT = 500
"""Deliveries claimed at once at most."""
FEWEST_IN_FLIGHT, FEWEST_SINGLE_IN_FLIGHT, MOST_IN_FLIGHT = 4, 8, 48
"""Calls at once. If the process dies, each of their recipients may get a copy, so there may be more calls of one."""
OF_LATE_SECONDS = 5.0
"""Calls that ended longer ago say nothing of how long one takes now."""
UNKNOWN_CALL_SECONDS = 0.25
"""What a call is assumed to last until one was measured: if less, too few threads would start, and calls be late."""
CALL_PROCESSOR_SECONDS = 0.006
"""What a call is assumed to cost until one was measured: as much as one with fifty recipients."""
CALLS_SHARE = 0.8
"""Of the time of a busy process; claims and looks take the rest."""
BEHIND_SECONDS = 0.1
"""From how long after their instants calls leave when the process cannot keep up: it claims no more ahead then."""
MOST_SINGLE_CALLS = 200.0
"""Calls of one recipient a second for which a process has time. Up to that rate they alone use more of it: the fifty
recipients of a scarce bulk call need some distance from the others."""
SPARE = 1.5
"""So many times more calls at once than Little's law asks for, because some take longer than others."""
BULK_SECONDS = 2.0
"""How long bulk calls have to be refused before that is put down to their being bulk calls."""
APART_SECONDS = 5.0
"""How long calls carry one recipient each after a bulk call was refused because of what is in it: until that one
recipient has had a call."""
RETRY_SECONDS = 1.0
"""The same, after one who got no answer before was claimed, who has a call alone: there may be many of them."""


class Flow:
    """The calls of one process, for any number of threads.

    `rate` is that of all senders together in recipients a second, infinite if there is none; `largest` is how many
    recipients a call takes; `are_bulk_calls_scarce` is what `bulk_turns` knows of that.
    """

    def __init__(self) -> None:
        self.rate = 0.0
        self.largest = 1
        self.are_bulk_calls_scarce = False
        self._apart_until = self._departed_at = self._behind = 0.0
        self._seconds: deque[tuple[float, float]] = deque(maxlen=50)
        self._claim_seconds: deque[float] = deque(maxlen=9)
        self._processor_seconds: deque[float] = deque(maxlen=50)
        self._bulk_calls: deque[tuple[float, bool]] = deque()
        self._turn = threading.Lock()

    def note_call(self, seconds: float, processor_seconds: float) -> None:
        """Note how long a call and the writing down of its outcomes took, by the clock and by the processor."""
        self._seconds.append((time.monotonic(), seconds))
        self._processor_seconds.append(processor_seconds)

    def note_claim(self, seconds: float) -> None:
        """Note how long a claim took, its commit included."""
        self._claim_seconds.append(min(seconds, LONGEST_CLAIM_SECONDS))

    @property
    def claim_seconds(self) -> float:
        """How long a claim takes: no call can leave earlier after it began."""
        return median(self._claim_seconds) if self._claim_seconds else 0.0

    @property
    def ahead_seconds(self) -> float:
        """How long before its instant a call is claimed at most."""
        return AHEAD_SECONDS + self.claim_seconds

    @property
    def lot_seconds(self) -> float:
        """How many seconds of sending one claim takes."""
        return max(LOT_SECONDS, LOT_A_CLAIM * self.claim_seconds)

    @property
    def longest_wait_seconds(self) -> float:
        """How far away the instant of a call is at most when it is claimed.

        Others have reserved up to there: below two recipients a second, or when the pace was lowered.
        """
        return 2 * (self.ahead_seconds + self.lot_seconds)

    def calls_in_flight(self) -> int:
        """Return how many calls at once keep the rate, by Little's law: calls a second times the time of a call.

        That time is the lower quartile of late: what SES and the network take, without the threads' waiting for each
        other. The shortest would be that of one call that failed at once, and leave the others too few threads. When
        calls leave late all the same it is the mean: some answers take much longer than others.
        """
        fewest = FEWEST_SINGLE_IN_FLIGHT if self.are_bulk_calls_scarce else FEWEST_IN_FLIGHT
        if math.isinf(self.rate):
            return fewest
        of_late = self._of_late()
        seconds = fmean(of_late) if of_late and self._is_behind else _lower_quartile(of_late, UNKNOWN_CALL_SECONDS)
        wanted = math.ceil(self._calls_a_second(SPARE) * seconds)
        return min(max(fewest, wanted), MOST_IN_FLIGHT)

    def calls_ahead(self) -> int:
        """Return how many calls may wait for their instants, so that the next lot is claimed before this is sent."""
        if math.isinf(self.rate) or self._is_behind:
            return 0
        return math.ceil(self._calls_a_second() * self.ahead_seconds)

    def lot(self) -> int:
        """Return how many deliveries to claim at once."""
        calls = self._calls_a_second() * self.lot_seconds
        recipients = self.recipients_a_call()
        return max(recipients, int(min(self.steady_rate * self.lot_seconds, calls * recipients, LARGEST_LOT)))

    def recipients_a_call(self) -> int:
        """Return how many recipients a call at the pace has."""
        if self.are_bulk_calls_scarce or self.is_apart:
            return 1
        return pacing.batch_size(self.rate, self.largest)

    @property
    def has_scarce_bulk_calls(self) -> bool:
        """Whether one bulk call a second is let through and helps."""
        return self.are_bulk_calls_scarce and self.largest > 1 and self.rate > MOST_SINGLE_CALLS and not self.is_apart

    @property
    def steady_rate(self) -> float:
        """The rate of the calls that leave at the pace: all but scarce bulk calls."""
        return self.rate - (self.largest if self.has_scarce_bulk_calls else 0)

    @property
    def is_apart(self) -> bool:
        """Whether calls carry one recipient each for a while."""
        return time.monotonic() < self._apart_until

    def keep_apart(self, *, for_retry: bool = False) -> None:
        """Let calls carry one recipient each for a while: in one of several, nobody knows whose address is to blame."""
        seconds = RETRY_SECONDS if for_retry else APART_SECONDS
        self._apart_until = max(self._apart_until, time.monotonic() + seconds)

    def departure(self, due_at: float, messages: int, *, latest: float) -> float:
        """Return when to make a call: at `due_at`, or as much later as the granted rate asks after a late one.

        In seconds of `time.monotonic`. If that is after `latest`, the caller gives the call back, and it delays no
        other: else each late one would make the next later still.
        """
        spacing = messages * pacing.HEADROOM / self.steady_rate
        with self._turn:
            leave_at = max(time.monotonic(), due_at, self._departed_at + spacing)
            self._behind = leave_at - due_at
            if leave_at <= latest:
                self._departed_at = leave_at
            return leave_at

    def shows_scarce_bulk_calls(self, *, was_refused: bool) -> bool:
        """Note a bulk call, and return whether by now hardly more than one a second is let through.

        Some accounts may make no more. Refusals alone prove nothing: going over the rate for a moment causes them too.
        """
        now = time.monotonic()
        with self._turn:
            self._bulk_calls.append((now, was_refused))
            while self._bulk_calls[0][0] <= now - 2 * BULK_SECONDS:
                self._bulk_calls.popleft()
            seconds, refused = now - self._bulk_calls[0][0], sum(was_refused for _, was_refused in self._bulk_calls)
            return seconds >= BULK_SECONDS and len(self._bulk_calls) - refused <= min(refused, seconds + 1)

    @property
    def _is_behind(self) -> bool:
        return self._behind > BEHIND_SECONDS

    def _of_late(self) -> list[float]:
        """Return how long the calls of the last seconds took, or the last four if there were none."""
        calls, since = list(self._seconds), time.monotonic() - OF_LATE_SECONDS
        return [seconds for ended_at, seconds in calls if ended_at > since] or [seconds for _, seconds in calls[-4:]]

    def _calls_a_second(self, spare: float = 1.0) -> float:
        """Return how many calls the rate asks for, at most as many as one process of Python has time for.

        Threads that the rate would allow beyond wait only for each other.
        """
        wanted = spare * self.steady_rate / self.recipients_a_call()
        return min(wanted, CALLS_SHARE / _lower_quartile(self._processor_seconds, CALL_PROCESSOR_SECONDS))


def _lower_quartile(seconds: Collection[float], unknown: float) -> float:
    return sorted(seconds)[len(seconds) // 4] if seconds else unknown
