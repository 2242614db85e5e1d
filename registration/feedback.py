"""Feedback: what the mail service tells of a message after it took it, and what that does, once for each event.

Events come more than once and in any order; the end is the same.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import and_, case, delete, func, insert, literal, or_, select, update
from sqlalchemy.orm import Session

from . import addresses, confirmations, ledger
from .db import UtcDateTime, rows_matched
from .errors import InvalidEmailException
from .events import Event, UnreadableEventError, digest, read
from .models import (
    Delivery,
    DeliveryStatus,
    Feedback,
    FeedbackEvent,
    FeedbackEventStatus,
    Registration,
    RegistrationStatus,
    SoftBounce,
)

PATIENCE = ledger.LEASE + timedelta(seconds=30)
"""How long an event without our tag waits for the commit that writes down its message id."""
RETENTION = timedelta(days=30)
"""How long it is remembered that an event has come. Amazon SQS keeps one for 14 days at most."""
MOST_SOFT_BOUNCES = 5
"""Broadcasts that bounce for the moment, one after another, until an address counts as bounced."""
ROWS_AT_ONCE = 500
_LONGEST_ASIDE = 16_384
_WORD = re.compile(r"""(?:&\#?\w{1,12};|\\{1,8}(?:u[0-9a-f]{4}|/)|[^\s"<>(),;:[\]\\])+""", re.IGNORECASE)
_AT = re.compile(
    r"[@\uff20\ufe6b]|\\u(?:0040|ff20|fe6b)|%(?:25)*40|=40|&(?:amp;)*(?:#0*64|#x0*40|commat)", re.IGNORECASE
)
"""The sign in an address as JSON, URLs, quoted-printable and HTML may write it, in a word of what is not understood."""

_F, _S, _E = Feedback, RegistrationStatus, FeedbackEventStatus
RANKS = (_F.DELAYED, _F.REJECTED, _F.SOFT_BOUNCE, _F.DELIVERED, _F.HARD_BOUNCE, _F.COMPLAINED)
"""Each weighs more than those before it, in whichever order they come. A delivery outweighs a soft bounce, because an
out-of-office reply to a message that was delivered is reported as a soft bounce."""
DECISIVE = (_F.DELIVERED, _F.HARD_BOUNCE, _F.COMPLAINED)
"""What ends a row of soft bounces."""
MAY_BECOME = {
    _S.BOUNCED: (_S.ACTIVE, _S.UNCONFIRMED),
    _S.COMPLAINED: (_S.ACTIVE, _S.UNCONFIRMED, _S.BOUNCED, _S.OPTED_OUT),
}
"""The statuses that feedback changes. It never weakens what a person said: who bounced comes back by registering
again, who opted out or complained only by a confirmation. One whose confirmation mail bounced comes back
unconfirmed: `confirmation_sent_at` stays to tell. A complaint says more than an opt-out, which its page undoes without
one."""


class _Line(NamedTuple):
    """What matters here of a delivery."""

    id: int
    broadcast_id: int
    registration_id: int
    status: DeliveryStatus
    message_id: str | None


@dataclass(frozen=True)
class _Match:
    """An event, and the delivery that it is about if that is known."""

    event: Event
    delivery: _Line | None


def take(session: Session, bodies: Iterable[str], now: datetime) -> None:
    """Give events their effect, each once.

    An unreadable event is put aside with the reason. Raises IntegrityError for the later of two who take the same event
    at once; its transaction is to be tried again.
    """
    events: dict[str, tuple[Event, str]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for body in bodies:
        try:
            event = read(body)
            events[event.event_id] = event, body
        except UnreadableEventError as error:
            row = _aside(body, str(error), now)
            rows[row["event_id"]] = row
    for event_id in _known(session, [*events, *rows]):
        events.pop(event_id, None)
        rows.pop(event_id, None)
    matches = _match(session, [event for event, _ in events.values()])
    for match in matches:
        event_id, waits = match.event.event_id, match.delivery is None and match.event.delivery_id is None
        status = _E.WAITING if waits else _E.APPLIED
        rows[event_id] = _row(event_id, status, now, events[event_id][1] if waits else None)
    if rows:
        session.execute(insert(FeedbackEvent), list(rows.values()))
    _give_effect(session, [match for match in matches if rows[match.event.event_id]["body"] is None], now)


def put_aside(session: Session, body: str, problem: str, now: datetime) -> None:
    """Keep an event that could not be given its effect, with the reason, and without the addresses in it.

    Whoever is erased would be in it still; what the event is about can be found by our tag and the message id.
    """
    row = _aside(body, problem, now)
    if not _known(session, [row["event_id"]]):
        session.execute(insert(FeedbackEvent), row)


def take_waiting(session: Session, now: datetime) -> int:
    """Give the next events that have waited long enough their effect; return how many there were.

    What no delivery is known for by now is about the address alone.
    """
    over = and_(FeedbackEvent.status == _E.WAITING, FeedbackEvent.received_at <= now - PATIENCE)
    oldest = select(FeedbackEvent.id, FeedbackEvent.body).where(over).order_by(FeedbackEvent.received_at)
    rows = session.execute(oldest.limit(ROWS_AT_ONCE).with_for_update(skip_locked=True)).all()
    if not rows:
        return 0
    done = update(FeedbackEvent).where(FeedbackEvent.id.in_([row.id for row in rows]))
    rows_matched(session, done.values(status=_E.APPLIED, body=None))
    _give_effect(session, _match(session, [read(row.body) for row in rows]), now)
    return len(rows)


def forget(session: Session, now: datetime) -> int:
    """Delete the next events that came long ago; return how many. The index that finds them begins with the status."""
    old = select(FeedbackEvent.id).where(
        FeedbackEvent.status.in_(sorted(_E)), FeedbackEvent.received_at <= now - RETENTION
    )
    ids = session.execute(old.limit(ROWS_AT_ONCE)).scalars().all()
    if ids:
        session.execute(delete(FeedbackEvent).where(FeedbackEvent.id.in_(ids)))
    return len(ids)


def counts(session: Session, broadcast_id: int) -> dict[Feedback, int]:
    """Return how many messages of a broadcast each feedback is the last word on; read from an index alone."""
    told = and_(Delivery.broadcast_id == broadcast_id, Delivery.feedback.is_not(None))
    found = dict(session.execute(select(Delivery.feedback, func.count()).where(told).group_by(Delivery.feedback)).all())
    return {feedback: found.get(feedback, 0) for feedback in Feedback}


def _key(address: str) -> str | None:
    """Return the key of an address, which may stand in angle brackets; None for one that cannot be registered."""
    try:
        return addresses.normalise(address.rpartition("<")[2].rstrip("> "), is_new=False).key
    except InvalidEmailException:
        return None


def _aside(body: str, problem: str, now: datetime) -> dict[str, Any]:
    nameless = _WORD.sub(lambda word: "[address]" if _AT.search(word[0]) else word[0], body)
    kept = nameless[:_LONGEST_ASIDE].encode("utf-8", "replace").decode()
    return _row(digest(nameless), _E.ASIDE, now, kept, problem[:255])


def _known(session: Session, event_ids: Sequence[str]) -> set[str]:
    known = select(FeedbackEvent.event_id).where(FeedbackEvent.event_id.in_(event_ids))
    return set(session.execute(known).scalars())


def _row(
    event_id: str, status: FeedbackEventStatus, now: datetime, body: str | None, problem: str | None = None
) -> dict[str, Any]:
    return {"event_id": event_id, "status": status, "received_at": now, "body": body, "problem": problem}


def _match(session: Session, events: Sequence[Event]) -> list[_Match]:
    """Find the deliveries of events, by our tag first and then by the message id."""
    columns = select(Delivery.id, Delivery.broadcast_id, Delivery.registration_id, Delivery.status, Delivery.message_id)
    by_tag = _tagged(session, columns, events)
    rest = [event.message_id for event in events if event.event_id not in by_tag]
    found = session.execute(columns.where(Delivery.message_id.in_(rest))).all() if rest else []
    by_message = {row.message_id: _Line(*row) for row in found}
    return [_Match(event, by_tag.get(event.event_id) or by_message.get(event.message_id)) for event in events]


def _tagged(session: Session, columns: Any, events: Sequence[Event]) -> dict[str, _Line]:
    """Return the deliveries that our tag names, by event, unless the tag says that they were somebody else's."""
    tagged = {event.delivery_id for event in events if event.delivery_id}
    if not tagged:
        return {}
    whose = columns.add_columns(Registration.product_id).join(Registration, Registration.id == Delivery.registration_id)
    found = {row.id: row for row in session.execute(whose.where(Delivery.id.in_(tagged)))}
    named = [(event, found[event.delivery_id]) for event in events if event.delivery_id in found]
    return {event.event_id: _Line(*row[:-1]) for event, row in named if row.product_id.hex.startswith(event.product)}


def _give_effect(session: Session, matches: Sequence[_Match], now: datetime) -> None:
    """Settle deliveries that were taken, write down the feedback, and suppress.

    Who takes other events of the same registrations waits: what each does depends on what the others have done. Of
    mail to somebody who was erased the address has the say: he may have come back.
    """
    matched = [(match.event, match.delivery) for match in matches if match.delivery is not None]
    erased: set[int] = set()
    if concerned := {delivery.registration_id for _, delivery in matched}:
        those = select(Registration.id, Registration.status).where(Registration.id.in_(concerned))
        rows = session.execute(those.order_by(Registration.id).with_for_update())
        erased = {row.id for row in rows if row.status is _S.ERASED}
    unsent = {delivery.id: event for event, delivery in matched if delivery.status is not DeliveryStatus.SENT}
    ledger.accept(session, {number: unsent[number].message_id for number in sorted(unsent)}, now)
    _note(session, matched)
    told: dict[Feedback | None, list[_Line]] = defaultdict(list)
    for event, delivery in matched:
        told[event.feedback].append(delivery)
    lost = [match.event for match in matches if match.delivery is None or match.delivery.registration_id in erased]
    for status, feedback in ((_S.COMPLAINED, _F.COMPLAINED), (_S.BOUNCED, _F.HARD_BOUNCE)):
        strangers = [event for event in lost if event.feedback is feedback]
        keys = {key for event in strangers for key in map(_key, event.recipients) if key is not None}
        _suppress(session, {delivery.registration_id for delivery in told[feedback]}, keys, status)
    decisive = [row for event, row in matched if event.feedback in DECISIVE and not event.is_withheld]
    _count_soft_bounces(session, decisive, told[_F.SOFT_BOUNCE])


def _note(session: Session, told: Sequence[tuple[Event, _Line]]) -> None:
    """Write down the weightiest feedback on each delivery, and the last time that it was told."""
    weightiest: dict[int, tuple[int, datetime]] = {}
    for event, delivery in told:
        if event.feedback is not None:
            here = RANKS.index(_F.REJECTED if event.is_withheld else event.feedback), event.at
            weightiest[delivery.id] = max(here, weightiest.get(delivery.id, here))
    for rank in {rank for rank, _ in weightiest.values()}:
        times = {number: literal(at, UtcDateTime) for number, (of, at) in sorted(weightiest.items()) if of == rank}
        at = case(times, value=Delivery.id)
        again = and_(Delivery.feedback == RANKS[rank], Delivery.feedback_at < at)
        news = or_(Delivery.feedback.is_(None), Delivery.feedback.in_(RANKS[:rank]), again)
        those = update(Delivery).where(Delivery.id.in_(times), news)
        rows_matched(session, those.values(feedback=RANKS[rank], feedback_at=at))


def _suppress(
    session: Session, registration_ids: Collection[int], keys: Collection[str], status: RegistrationStatus
) -> None:
    """Mail no more to registrations, by their ids or by the keys of their addresses, unless they are not mailed to."""
    for column, values in ((Registration.id, registration_ids), (Registration.email_key, keys)):
        if not values:
            continue
        if status is _S.COMPLAINED:
            # A complaint voids confirmation links sent before it. For an address that had complained already, only one
            # that matches no delivery does: it may be about the confirmation mail itself.
            again = (status,) if column is Registration.email_key else ()
            those = column.in_(sorted(values)), Registration.status.in_((*MAY_BECOME[status], *again))
            confirmations.drop(session, *those)
            rows_matched(session, update(Registration).where(*those).values(status=status, confirmation_sent_at=None))
        else:
            those = column.in_(sorted(values)), Registration.status.in_(MAY_BECOME[status])
            was_asked = or_(Registration.status != _S.UNCONFIRMED, Registration.confirmation_sent_at.is_not(None))
            rows_matched(session, update(Registration).where(*those, was_asked).values(status=status))


def _count_soft_bounces(session: Session, decisive: Sequence[_Line], bounced: Sequence[_Line]) -> None:
    """Keep each registration's soft bounces in a row, in the order of the broadcasts; suppress it at MOST_SOFT_BOUNCES.

    `decisive` deliveries end a row, those that `bounced` softly continue it.
    """
    concerned = {row.registration_id for row in (*decisive, *bounced)}
    rows: dict[int, set[int]] = defaultdict(set)
    known = select(SoftBounce.registration_id, SoftBounce.broadcast_id)
    if concerned:
        for registration_id, broadcast_id in session.execute(known.where(SoftBounce.registration_id.in_(concerned))):
            rows[registration_id].add(broadcast_id)
    for row in decisive:
        if row.registration_id in rows:
            _end_soft_bounces(session, row.registration_id, row.broadcast_id, rows[row.registration_id])
    ends = _last_decisive(session, {row.registration_id for row in bounced})
    for row in bounced:
        here = rows[row.registration_id]
        if row.broadcast_id > ends.get(row.registration_id, 0) and row.broadcast_id not in here:
            here.add(row.broadcast_id)
            session.execute(
                insert(SoftBounce).values(registration_id=row.registration_id, broadcast_id=row.broadcast_id)
            )
    full = {row.registration_id for row in bounced if len(rows[row.registration_id]) >= MOST_SOFT_BOUNCES}
    _suppress(session, full, (), _S.BOUNCED)


def _end_soft_bounces(session: Session, registration_id: int, broadcast_id: int, rows: set[int]) -> None:
    """Forget soft bounces up to a broadcast. An address that they alone suppressed is active again: no row of five."""
    before = set(rows)
    rows -= {bounced for bounced in rows if bounced <= broadcast_id}
    session.execute(
        delete(SoftBounce).where(SoftBounce.registration_id == registration_id, SoftBounce.broadcast_id <= broadcast_id)
    )
    if len(rows) < MOST_SOFT_BOUNCES <= len(before):
        here = Delivery.registration_id == registration_id
        begun_at = select(Delivery.settled_at).where(here, Delivery.broadcast_id == min(before)).scalar_subquery()
        # A hard bounce from before the row's first message does not count: the address has registered again since.
        hard = select(Delivery.id).where(here, Delivery.feedback == _F.HARD_BOUNCE, Delivery.feedback_at >= begun_at)
        suppressed = update(Registration).where(Registration.id == registration_id, Registration.status == _S.BOUNCED)
        rows_matched(session, suppressed.where(~hard.exists()).values(status=_S.ACTIVE))


def _last_decisive(session: Session, registration_ids: Collection[int]) -> dict[int, int]:
    """Return the last broadcast that did not bounce for the moment, by registration."""
    if not registration_ids:
        return {}
    last = select(Delivery.registration_id, func.max(Delivery.broadcast_id)).where(
        Delivery.registration_id.in_(registration_ids), Delivery.feedback.in_(DECISIVE)
    )
    return dict(session.execute(last.group_by(Delivery.registration_id)).all())
