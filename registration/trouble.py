"""What has gone wrong in the calls of a sender of late, and what is to be done about it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .mailers import Outcome, Verdict

UNREACHED_SECONDS = 10.0
"""How long the mail service cannot be reached until its broadcasts say so and rest for a while."""
MOST_REFUSED = 5
"""So many addresses refused one after another are not to blame: the sender or the message is."""
FIRST_REST_SECONDS, LONGEST_REST_SECONDS = 4.0, 15.0
"""How long all senders rest after two calls in a row without an answer, twice as long after each more, and at most."""
_ALL_REFUSED = (
    "The mail service refuses one address after another, so the message or the sender is to blame, not the addresses. "
    "The service's log has its code."
)


@dataclass(frozen=True)
class Advice:
    """What to do after a call: let its broadcast rest, for the reason `hold`; slow down; let all rest for a while."""

    hold: str | None
    slow_down: bool
    rest_seconds: float


ALL_IS_WELL = Advice(None, slow_down=False, rest_seconds=0.0)


class Trouble:
    """Judges the calls of one sender by their outcomes, one call after another."""

    def __init__(self) -> None:
        self._unanswered = self._refused = 0
        self._unreached_since = math.inf
        self._resting_until = -math.inf

    @property
    def is_unanswered(self) -> bool:
        """Whether the mail service left the last calls unanswered: each may have reached everybody in it, or nobody."""
        return self._unanswered > 1

    def rests_at(self, instant: float) -> bool:
        """Return whether the rest that was advised covers an instant, for which a call may have been claimed before."""
        return instant < self._resting_until

    def judge(self, outcomes: Sequence[Outcome], now: float, *, due_at: float) -> Advice:
        """Return what to do after a call that was due at an instant; seconds of a clock that only goes forward."""
        verdicts = {outcome.verdict for outcome in outcomes}
        reasons = _first_reason(outcomes, Verdict.HELD), self._out_of_reach(outcomes, now), self._all_refused(outcomes)
        hold = next((reason for reason in reasons if reason is not None), None)
        if hold is not None:
            self._refused = 0
        return Advice(
            hold,
            slow_down=bool(verdicts & {Verdict.THROTTLED, Verdict.UNREACHED}),
            rest_seconds=self._rest(verdicts, now, due_at),
        )

    def _rest(self, verdicts: Collection[Verdict], now: float, due_at: float) -> float:
        """Return how long to rest; calls that were under way when a rest began say nothing new."""
        if verdicts != {Verdict.UNKNOWN}:
            self._unanswered = 0
        elif not self.rests_at(due_at):
            self._unanswered += 1
            if self.is_unanswered:
                rest = min(FIRST_REST_SECONDS * 2.0 ** min(self._unanswered - 2, 10), LONGEST_REST_SECONDS)
                self._resting_until = now + rest
                return rest
        return 0.0

    def _out_of_reach(self, outcomes: Sequence[Outcome], now: float) -> str | None:
        reason = _first_reason(outcomes, Verdict.UNREACHED)
        self._unreached_since = math.inf if reason is None else min(self._unreached_since, now)
        return reason if now - self._unreached_since >= UNREACHED_SECONDS else None

    def _all_refused(self, outcomes: Sequence[Outcome]) -> str | None:
        """Return whether too many have been refused in a row; who is to be tried alone has not been judged yet."""
        judged = [outcome.verdict for outcome in outcomes if outcome.verdict is not Verdict.APART]
        self._refused = self._refused + len(judged) if set(judged) == {Verdict.REFUSED} else 0
        return _ALL_REFUSED if self._refused >= MOST_REFUSED else None


def _first_reason(outcomes: Sequence[Outcome], verdict: Verdict) -> str | None:
    return next((outcome.reason or "" for outcome in outcomes if outcome.verdict is verdict), None)
