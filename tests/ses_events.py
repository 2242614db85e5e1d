"""Events in the shapes of Amazon SES's documentation.

https://docs.aws.amazon.com/ses/latest/dg/event-publishing-retrieving-sns-examples.html
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from registration.models import Feedback

AT = datetime(2026, 11, 23, 12, tzinfo=UTC)
ADDRESS = "recipient@example.org"


def stamp(seconds: float = 0.0) -> str:
    return f"{AT + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"


def send(delivery_id: int | None = None, **about: Any) -> str:
    return _event("Send", "send", {}, delivery_id, **about)


def delivery(delivery_id: int | None = None, *, address: str = ADDRESS, seconds: float = 1, **about: Any) -> str:
    part = {
        "timestamp": stamp(seconds),
        "processingTimeMillis": 11893,
        "recipients": [address],
        "smtpResponse": "250 2.6.0 Message received",
        "reportingMTA": "mta.example.com",
    }
    return _event("Delivery", "delivery", part, delivery_id, address=address, **about)


def delay(delivery_id: int | None = None, *, address: str = ADDRESS, seconds: float = 1, **about: Any) -> str:
    part = {
        "timestamp": stamp(seconds),
        "delayType": "TransientCommunicationFailure",
        "expirationTime": stamp(seconds + 50_400),
        "delayedRecipients": [
            {"emailAddress": address, "status": "4.4.1", "diagnosticCode": "smtp; 421 4.4.1 Unable to connect"}
        ],
    }
    return _event("DeliveryDelay", "deliveryDelay", part, delivery_id, address=address, **about)


def bounce(
    delivery_id: int | None = None,
    *,
    kind: str = "Permanent",
    subtype: str = "General",
    address: str = ADDRESS,
    seconds: float = 1,
    **about: Any,
) -> str:
    part = {
        "bounceType": kind,
        "bounceSubType": subtype,
        "bouncedRecipients": [
            {
                "emailAddress": address,
                "action": "failed",
                "status": "5.1.1",
                "diagnosticCode": "smtp; 550 5.1.1 user unknown",
            }
        ],
        "timestamp": stamp(seconds),
        "feedbackId": f"0100-bounce-{kind}-{delivery_id}-{seconds:g}",
        "reportingMTA": "dsn; mta.example.com",
    }
    return _event("Bounce", "bounce", part, delivery_id, address=address, **about)


def soft_bounce(delivery_id: int | None = None, **about: Any) -> str:
    return bounce(delivery_id, kind="Transient", **about)


def complaint(
    delivery_id: int | None = None,
    *,
    kind: str | None = "abuse",
    subtype: str | None = None,
    address: str = ADDRESS,
    seconds: float = 1,
    **about: Any,
) -> str:
    part = {
        "complainedRecipients": [{"emailAddress": address}],
        "timestamp": stamp(seconds),
        "feedbackId": f"0100-complaint-{delivery_id}-{seconds:g}",
        "complaintSubType": subtype,
        "userAgent": "ExampleCorp Feedback Loop (V0.01)",
        "complaintFeedbackType": kind,
        "arrivalDate": stamp(seconds),
    }
    return _event("Complaint", "complaint", part, delivery_id, address=address, **about)


def reject(delivery_id: int | None = None, **about: Any) -> str:
    return _event("Reject", "reject", {"reason": "Bad content"}, delivery_id, **about)


def rendering_failure(delivery_id: int | None = None, **about: Any) -> str:
    part = {"errorMessage": "Attribute 'name' is not present in the rendering data.", "templateName": "MyTemplate"}
    return _event("Rendering Failure", "failure", part, delivery_id, **about)


def by_sns(event: str) -> str:
    """Wrap an event as Amazon SNS does without raw message delivery."""
    return json.dumps(
        {
            "Type": "Notification",
            "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
            "TopicArn": "arn:aws:sns:us-east-1:123456789012:registration-feedback",
            "Subject": "Amazon SES Email Event Notification",
            "Message": event,
            "Timestamp": stamp(2),
            "SignatureVersion": "1",
            "Signature": "EXAMPLE",
            "SigningCertURL": "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-1.pem",
            "UnsubscribeURL": "https://sns.us-east-1.amazonaws.com/?Action=Unsubscribe",
        }
    )


def by_identity(event: str) -> str:
    """Turn an event into the notification of an identity, which knows no tags."""
    told = json.loads(event)
    del told["mail"]["tags"]
    return json.dumps({"notificationType": told.pop("eventType"), **told})


def _event(
    kind: str,
    name: str,
    part: dict[str, Any],
    delivery_id: int | None,
    *,
    address: str = ADDRESS,
    message_id: str | None = None,
) -> str:
    tags = {
        "ses:configuration-set": ["registration"],
        "ses:source-ip": ["192.0.2.0"],
        "ses:from-domain": ["example.org"],
        "ses:caller-identity": ["registration-instance"],
    }
    if delivery_id is not None:
        tags["delivery"] = [str(delivery_id)]
    mail = {
        "timestamp": stamp(),
        "source": "OpenEMR <security@example.org>",
        "sourceArn": "arn:aws:ses:us-east-1:123456789012:identity/example.org",
        "sendingAccountId": "123456789012",
        "messageId": message_id or f"0100-{delivery_id}",
        "destination": [address],
        "headersTruncated": False,
        "headers": [{"name": "From", "value": "OpenEMR <security@example.org>"}, {"name": "To", "value": address}],
        "commonHeaders": {"from": ["OpenEMR <security@example.org>"], "to": [address], "subject": "Update now"},
        "tags": tags,
    }
    return json.dumps({"eventType": kind, "mail": mail, name: part})


KINDS = {
    "delay": (delay, Feedback.DELAYED),
    "reject": (reject, Feedback.REJECTED),
    "rendering failure": (rendering_failure, Feedback.REJECTED),
    "soft bounce": (soft_bounce, Feedback.SOFT_BOUNCE),
    "delivery": (delivery, Feedback.DELIVERED),
    "hard bounce": (bounce, Feedback.HARD_BOUNCE),
    "complaint": (complaint, Feedback.COMPLAINED),
}
"""Every event that says what became of a message after it was accepted, and what that is."""
