"""Events of Amazon SES about messages that it took: the text of one in, an Event out.

The formats of Amazon SES, with our tags:
https://docs.aws.amazon.com/ses/latest/dg/event-publishing-retrieving-sns-contents.html, and without:
https://docs.aws.amazon.com/ses/latest/dg/notification-contents.html
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from . import ledger
from .db import LARGEST_ID
from .mailers import NO_DELIVERY
from .models import Feedback

LONGEST_BODY = 262_144
_WITHHELD = "OnAccountSuppressionList"

_F = Feedback
_PARTS: Mapping[str, tuple[str, str]] = {
    "Send": ("send", ""),
    "Delivery": ("delivery", "recipients"),
    "DeliveryDelay": ("deliveryDelay", "delayedRecipients"),
    "Bounce": ("bounce", "bouncedRecipients"),
    "Complaint": ("complaint", "complainedRecipients"),
    "Reject": ("reject", ""),
    "Rendering Failure": ("failure", ""),
    "Open": ("open", ""),
    "Click": ("click", ""),
    "Subscription": ("subscription", ""),
}
"""For each type of event, where the rest of it is, and the list of addresses in there; all recipients without one."""
_PLAIN = {
    "Delivery": _F.DELIVERED,
    "DeliveryDelay": _F.DELAYED,
    "Reject": _F.REJECTED,
    "Rendering Failure": _F.REJECTED,
}
"""What the type of an event alone says of its message."""


class UnreadableEventError(ValueError):
    """The event is not one of Amazon SES's; the message says why."""


@dataclass(frozen=True)
class Event:
    """What an event says. `feedback` is None when it only proves that the mail service took the message.

    `is_withheld` is true of a bounce or complaint that repeats an earlier one: the address is on the account's
    suppression list, so the message was not sent, and the service does not count it against the account
    (https://docs.aws.amazon.com/ses/latest/dg/sending-email-suppression-list.html). `delivery_id` is our tag, None
    without one, and `product` the beginning of the product id, empty where a version before did not give it;
    `recipients` are the addresses that it is about, as it writes them.
    """

    event_id: str
    feedback: Feedback | None
    message_id: str
    delivery_id: int | None
    recipients: tuple[str, ...]
    at: datetime
    is_withheld: bool = False
    product: str = ""


def read(body: str) -> Event:
    """Read an event, as the queue hands it over or wrapped by Amazon SNS. Raises UnreadableEventError."""
    if len(body) > LONGEST_BODY:
        raise UnreadableEventError(f"It is longer than {LONGEST_BODY:,} characters.")
    told = _object(_parse(body), "The event")
    if "eventType" not in told and isinstance(told.get("Message"), str):
        told = _object(_parse(told["Message"]), "The event")
    kind = told.get("eventType", told.get("notificationType"))
    if not isinstance(kind, str) or kind not in _PARTS:
        raise UnreadableEventError("Its eventType is not one that we know.")
    mail = _object(told.get("mail"), "Its mail")
    name, recipients = _PARTS[kind]
    part = _object(told.get(name, {}), f"Its {name}")
    message_id = _message_id(mail)
    stamp = part.get("timestamp", mail.get("timestamp"))
    found = _addresses(part.get(recipients) if recipients else mail.get("destination"))
    delivery_id, product = _our_tag(mail.get("tags"))
    identity = [kind, message_id, part.get("feedbackId") or stamp]
    return Event(
        event_id=digest(json.dumps(identity)),
        feedback=_feedback(kind, part),
        message_id=message_id,
        delivery_id=delivery_id,
        product=product,
        recipients=tuple(found),
        at=_time(stamp),
        is_withheld=_WITHHELD in (part.get("bounceSubType"), part.get("complaintSubType")),
    )


def _feedback(kind: str, part: Mapping[str, Any]) -> Feedback | None:
    if kind == "Bounce":
        if part.get("bounceType") not in ("Permanent", "Transient", "Undetermined"):
            raise UnreadableEventError("Its bounceType is not one that we know.")
        return _F.HARD_BOUNCE if part["bounceType"] == "Permanent" else _F.SOFT_BOUNCE
    if kind == "Complaint":
        return None if part.get("complaintFeedbackType") == "not-spam" else _F.COMPLAINED
    return _PLAIN.get(kind)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableEventError("It is not JSON.") from error


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UnreadableEventError(f"{what} is not a JSON object.")
    return value


def _message_id(mail: Mapping[str, Any]) -> str:
    message_id = mail.get("messageId")
    if ledger.is_message_id(message_id):
        return message_id
    raise UnreadableEventError("Its mail has no usable messageId.")


def _time(stamp: Any) -> datetime:
    try:
        at = datetime.fromisoformat(stamp)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise UnreadableEventError("Its timestamp is not a time.") from error


def _our_tag(tags: Any) -> tuple[int | None, str]:
    """Return the values of our tags, see `Recipient.tags`; NO_DELIVERY for one that is not ours."""
    delivery, product = (_first(tags, name) for name in ("delivery", "product"))
    if delivery is None:
        return None, ""
    is_number = delivery.isascii() and delivery.isdecimal() and len(delivery) < 20
    return (int(delivery) if is_number and int(delivery) <= LARGEST_ID else NO_DELIVERY), product or ""


def _first(tags: Any, name: str) -> str | None:
    """Return the first value of a tag; an empty text for one that is no text, None without any."""
    values = tags.get(name) if isinstance(tags, dict) else None
    if not isinstance(values, list) or not values:
        return None
    return values[0] if isinstance(values[0], str) else ""


def _addresses(recipients: Any) -> list[str]:
    """Return the addresses of a list of texts, or of objects that name them."""
    if not isinstance(recipients, list):
        raise UnreadableEventError("It does not say which recipients it is about.")
    found = [entry.get("emailAddress") if isinstance(entry, dict) else entry for entry in recipients]
    return [address for address in found if isinstance(address, str)]


def digest(text: str) -> str:
    """Return the id of an event by what it says."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
