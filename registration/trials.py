"""Trials, which the API calls tests: a message to one address before it goes to everybody.

Nothing of them is written into the ledger.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy.orm import Session

from . import mailers, messages, pacing
from .errors import MailServiceBusyException, MailServiceRefusedException
from .mailers import NO_DELIVERY, Mailer, Recipient, Verdict
from .messages import Message

LONGEST_WAIT = 10.0
"""Seconds for which somebody who is watching waits for their turn."""
_TAKEN_LATER = {Verdict.THROTTLED, Verdict.UNREACHED, Verdict.HELD}


def reserve(session: Session, *, rate_limit: float, now: float) -> float:
    """Reserve the sending of one message at the pace that all senders share; return the seconds to wait before it.

    `rate_limit` is the operator's own. Raises MailServiceBusyException when it would be too long.
    """
    rate = pacing.current_rate(session, limit=rate_limit, now=now)
    if pacing.free_in(session, rate=rate, now=now) > LONGEST_WAIT:
        reason = "Other mail goes first at the moment. Try again in a minute."
        raise MailServiceBusyException(reason, retry_after=timedelta(minutes=1))
    return pacing.reserve(session, 1, rate=rate, now=now)


def send(mailer: Mailer, message: Message, address: str) -> None:
    """Send a message to one address, marked as a test.

    Raises MailServiceBusyException when the mail service may take it later, MailServiceRefusedException when it
    refused it or gave no answer; each with its reason.
    """
    (outcome,) = mailers.send(mailer, messages.mark_as_test(message), [Recipient(NO_DELIVERY, address)])
    if outcome.verdict in _TAKEN_LATER:
        raise MailServiceBusyException(outcome.reason)
    if outcome.verdict is not Verdict.ACCEPTED:
        raise MailServiceRefusedException(outcome.reason)
