"""Trouble with the calls of a sender, by broadcast, and what is to be done about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .mailers import Outcome, Verdict

UNREACHED_SECONDS = 10.0
"""How long the mail service cannot be reached until its broadcasts say so and rest for a while."""
MOST_REFUSED = 5
"""So many addresses refused one after another are not to blame: the sender or the message is."""
MOST_UNANSWERED = 4
"""After so many calls of one recipient in a row without an answer a broadcast rests. One of several recipients counts
as two, because there would be more copies; among many calls of one, two in a row now and then are chance."""
FIRST_REST_SECONDS, LONGEST_REST_SECONDS = 1.0, 15.0
"""How long it rests then, twice as long after each more, and at most."""
_NO_ANSWER = {Verdict.UNKNOWN, Verdict.UNREACHED}
_ALL_REFUSED = (
    "The mail service refuses one address after another, so the message or the sender is to blame, not the addresses. "
    "The service's log has its code."
)


@dataclass(frozen=True)
class Advice:
    """What to do after a call: let its broadcast rest, for the reason `hold`; slow all senders down."""

    hold: str | None
    slow_down: bool


class Trouble:
    """Judges the calls of one broadcast by one sender by their outcomes, one call after another.

    While it is unanswered it makes one call at a time, a probe, known by the name of its claim. Times are in seconds of
    a clock that only goes forward.
    """

    def __init__(self) -> None:
        self._unanswered = self._refused = 0
        self._unreached_since = math.inf
        self._unreached_at = self._resting_until = -math.inf
        self._probe: str | None = None

    @property
    def is_unanswered(self) -> bool:
        """Whether the last calls got no answer: their messages may or may not have been accepted."""
        return self._unanswered >= MOST_UNANSWERED

    def suspect(self) -> None:
        """Take the last calls as unanswered, because those of another broadcast were."""
        self._unanswered = max(self._unanswered, MOST_UNANSWERED)

    def may_claim(self, now: float) -> bool:
        """Return whether there may be a call: it does not rest, and no probe is under way."""
        return not self._rests_at(now) and (self._probe is None or not self.is_unanswered)

    def may_leave(self, lease: str) -> bool:
        """Return whether a call may be made, which may have been claimed before the last ones went wrong."""
        return not self.is_unanswered or lease == self._probe

    def begin_probe(self, lease: str) -> None:
        """Let no other call be claimed until this one has been made or given back."""
        self._probe = lease

    def end_probe(self, lease: str) -> None:
        """Take a call as made or given back, if it was a probe."""
        if lease == self._probe:
            self._probe = None

    def judge(self, outcomes: Sequence[Outcome], now: float, *, due_at: float) -> Advice:
        """Return what to do after a call that was due at an instant."""
        verdicts = {outcome.verdict for outcome in outcomes}
        reasons = _first_reason(outcomes, Verdict.HELD), self._out_of_reach(outcomes, now), self._all_refused(outcomes)
        hold = next((reason for reason in reasons if reason is not None), None)
        if hold is not None:
            self._refused = 0
        if not verdicts <= _NO_ANSWER:
            self._unanswered = 0
        elif not self._rests_at(due_at):  # what was under way when a rest began says nothing new
            self._unanswered += 1 if len(outcomes) == 1 else 2
            if self.is_unanswered:
                rest = FIRST_REST_SECONDS * 2.0 ** min(self._unanswered - MOST_UNANSWERED, 10)
                self._resting_until = now + min(rest, LONGEST_REST_SECONDS)
        return Advice(hold, slow_down=Verdict.THROTTLED in verdicts)

    def _rests_at(self, instant: float) -> bool:
        return instant < self._resting_until

    def _out_of_reach(self, outcomes: Sequence[Outcome], now: float) -> str | None:
        """Return the reason once no call has reached the mail service for UNREACHED_SECONDS; None before.

        A call without an answer may have reached it, and neither begins nor ends that time. A while without calls, as
        in a pause, begins it anew.
        """
        if not {outcome.verdict for outcome in outcomes} <= _NO_ANSWER:
            self._unreached_since = math.inf
        reason = _first_reason(outcomes, Verdict.UNREACHED)
        if reason is None:
            return None
        was_long_ago = now - self._unreached_at > 2 * LONGEST_REST_SECONDS
        self._unreached_since = now if was_long_ago else min(self._unreached_since, now)
        self._unreached_at = now
        return reason if now - self._unreached_since >= UNREACHED_SECONDS else None

    def _all_refused(self, outcomes: Sequence[Outcome]) -> str | None:
        """Return the reason once MOST_REFUSED addresses in a row were refused; APART is no judgement of an address."""
        judged = [outcome.verdict for outcome in outcomes if outcome.verdict is not Verdict.APART]
        self._refused = self._refused + len(judged) if set(judged) == {Verdict.REFUSED} else 0
        return _ALL_REFUSED if self._refused >= MOST_REFUSED else None


class Troubles:
    """The trouble of each broadcast that one sender has sent.

    A broadcast whose calls are never answered keeps no other waiting. None is forgotten while the process lives, so one
    that goes on after a pause begins with a probe.
    """

    def __init__(self) -> None:
        self._by_broadcast: dict[int, Trouble] = {}
        self._last_was_unanswered = False

    def of(self, broadcast_id: int) -> Trouble:
        """Return the trouble of a broadcast; a new one is suspected if the one that had the last call is unanswered."""
        if broadcast_id not in self._by_broadcast:
            trouble = self._by_broadcast.setdefault(broadcast_id, Trouble())
            if self._last_was_unanswered:
                trouble.suspect()
        return self._by_broadcast[broadcast_id]

    def judge(self, broadcast_id: int, outcomes: Sequence[Outcome], now: float, *, due_at: float) -> Advice:
        """Return what to do after a call, see `Trouble.judge`; when no answers come any more, all are suspected."""
        trouble = self.of(broadcast_id)
        was_unanswered = trouble.is_unanswered
        advice = trouble.judge(outcomes, now, due_at=due_at)
        self._last_was_unanswered = trouble.is_unanswered
        if self._last_was_unanswered and not was_unanswered:
            for other in list(self._by_broadcast.values()):
                other.suspect()
        return advice


def _first_reason(outcomes: Sequence[Outcome], verdict: Verdict) -> str | None:
    return next((outcome.reason or "" for outcome in outcomes if outcome.verdict is verdict), None)
