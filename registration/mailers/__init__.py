"""Mailers, the ways for mail to leave: one small interface, and the two modules that fulfil it."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple, Protocol

from ..messages import Message

_UNFORESEEN = "The call failed as nobody foresaw; the message may have been accepted. The service's log has the error."

log = logging.getLogger(__name__)


class Verdict(Enum):
    """What became of one message, as far as the mail service let us know."""

    ACCEPTED = auto()
    """The mail service has taken it."""
    THROTTLED = auto()
    """Not taken: too fast. Slow down and send it again."""
    UNREACHED = auto()
    """Not taken: the mail service could not be reached. Send it again."""
    HELD = auto()
    """Not taken, for a reason that holds for every recipient: stop for now."""
    REFUSED = auto()
    """Not taken, and never will be for this address."""
    UNKNOWN = auto()
    """Perhaps taken: the answer was lost."""
    APART = auto()
    """Not taken together with others: send it again in a call of its own."""


class Outcome(NamedTuple):
    """A verdict with what goes with it: the id of an accepted message, the reason in plain English otherwise."""

    verdict: Verdict
    message_id: str | None = None
    reason: str | None = None


NO_DELIVERY = 0
"""The id of a message that is in no ledger: a test, or a confirmation mail."""


class Recipient(NamedTuple):
    """Where one delivery goes; without a product id, to somebody who need not be registered."""

    delivery_id: int
    address: str
    product_id: uuid.UUID | None = None

    @property
    def tags(self) -> dict[str, str]:
        """What the mail service's events carry back: the delivery, and by the beginning of the product id whose it is.

        A database that was restored numbers other deliveries alike.
        """
        delivery = {"delivery": str(self.delivery_id)}
        return delivery if self.product_id is None else delivery | {"product": self.product_id.hex[:8]}


@dataclass(frozen=True)
class Account:
    """What a mail service grants: recipients a second, recipients in 24 hours, and how many of those are used.

    Infinite where there is no limit.
    """

    sending_rate: float
    daily_quota: float = math.inf
    sent_last_day: float = 0.0


def send(mailer: Mailer, message: Message, recipients: Sequence[Recipient]) -> Sequence[Outcome]:
    """Send through a mailer and return an outcome for each recipient, in order.

    A call that fails as nobody foresaw is one without an answer: its messages may have been accepted.
    """
    try:
        return mailer.send(message, recipients)
    except Exception:
        log.exception("a call failed as nobody foresaw")
        return [Outcome(Verdict.UNKNOWN, reason=_UNFORESEEN)] * len(recipients)


class Mailer(Protocol):
    """A way for mail to leave."""

    def largest_batch(self, message: Message) -> int:
        """Return how many recipients one call of `send` takes at most."""

    def send(self, message: Message, recipients: Sequence[Recipient]) -> list[Outcome]:
        """Send one message to each recipient, who sees no other, and return an outcome for each, in order.

        Ends within half a minute, unless an answer comes byte by byte or name servers are silent, and raises nothing
        that the mail service can cause.
        """

    def account(self) -> Account | None:
        """Return what the mail service grants, or None while it does not say."""
