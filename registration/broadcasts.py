"""Broadcasts: start one, steer it, and find those that senders have work with. Their deliveries are in the ledger."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, undefer

from . import audiences, ledger, windows
from .audiences import EVERYBODY, Audience
from .db import LARGEST_ID, rows_matched
from .errors import IdempotencyKeyException, RepeatedBroadcastException, UnknownBroadcastException
from .messages import BYTE_ORDER_MARK, Message
from .models import Broadcast, BroadcastRequest, BroadcastStatus

HOLD = timedelta(seconds=60)
"""How long a broadcast that the mail service held up rests before it tries again."""
REPEAT = timedelta(hours=24)
"""How long a request for the same broadcast counts as a repetition of the first."""
RESEND = timedelta(minutes=5)
"""The same, when both requests say that the message is to be sent again: a second click, not a third notice."""
_LINE_END = re.compile(r"\r+\n|\n\r")
"""What programs that disagree about the end of a line make of one."""
PAUSED_BY_HAND = "Somebody paused it. It waits until somebody resumes it."

_S = BroadcastStatus
MOVES: Mapping[BroadcastStatus, frozenset[BroadcastStatus]] = {
    _S.SENDING: frozenset({_S.PAUSED, _S.SENT, _S.CANCELLED}),
    _S.PAUSED: frozenset({_S.SENDING, _S.PAUSED}),
    _S.SENT: frozenset({_S.SENDING}),
    _S.CANCELLED: frozenset({_S.SENDING, _S.PAUSED}),
}
"""For each status, those from which a broadcast may come to it."""
_ENDED = select(Broadcast.id).where(Broadcast.finished_at.is_not(None))


@dataclass(frozen=True)
class Work:
    """A broadcast that a sender has something to do for."""

    broadcast_id: int
    status: BroadcastStatus
    filled: bool


def start(
    session: Session,
    message: Message,
    now: datetime,
    *,
    whom: Audience = EVERYBODY,
    urgent: bool = False,
    idempotency_key: str | None = None,
    resend: bool = False,
) -> int:
    """Start a broadcast to everybody who is registered now, or to some versions, and return its id.

    Raises RepeatedBroadcastException, with the id of the first, for a request that repeats one of the last 24 hours,
    or one whose broadcast has not ended: with an idempotency key, one with the same key; without, any with the same
    message to the same versions. `resend` sends it again, if the last `resend` was not just before. The same key with
    another message or other versions raises IdempotencyKeyException
    (draft-ietf-httpapi-idempotency-key-header). Of simultaneous requests with one name (the key, or else the message
    and `resend`) one starts the broadcast, because only one can insert it.
    """
    fingerprint = _fingerprint(message, whom)
    if idempotency_key is None and not resend:
        _refuse_if_under_way(session, fingerprint)
    broadcast_id = _insert(session, message, now, whom=whom, urgent=urgent)
    request = {"fingerprint": fingerprint, "broadcast_id": broadcast_id, "created_at": now}
    old = BroadcastRequest.created_at <= now - REPEAT, BroadcastRequest.broadcast_id.in_(_ENDED)
    if idempotency_key is not None:
        _insert_request(session, _digest("key", idempotency_key), request, *old)
        _replace_request(session, fingerprint, request)
    elif resend:
        long_ago = BroadcastRequest.created_at <= now - RESEND
        _insert_request(session, _digest("resend", fingerprint), request, long_ago)
        _replace_request(session, fingerprint, request)
    else:
        _insert_request(session, fingerprint, request, *old)
    return broadcast_id


def _insert(session: Session, message: Message, now: datetime, *, whom: Audience, urgent: bool) -> int:
    end = windows.highest_id(session)
    recipients = audiences.count(session, whom, end)
    broadcast = Broadcast(
        title=message.subject,
        contents=message.text,
        html=message.html,
        status=_S.SENDING if recipients else _S.SENT,
        urgent=urgent,
        recipients=recipients,
        audience_end=end,
        filled_to=0 if recipients else end,
        versions=whom.versions.text if whom.versions else None,
        include_unknown=whom.include_unknown,
        seen_since=whom.seen_since,
        created_at=now,
        finished_at=None if recipients else now,
    )
    session.add(broadcast)
    session.flush()
    return broadcast.id


def _end_holds(session: Session, rows: Sequence[Any], now: datetime) -> set[int]:
    """Let those of some broadcasts go on whose `resume_at` has come; return their ids.

    All that are held for one reason go on when the first of them may: what is free of a quota by then is for the
    urgent ones. A `resume_at` further away than a hold can last was written by a wrong clock, and has come too.
    """
    held = [row for row in rows if row.resume_at is not None]
    over = {row.reason for row in held if not now < row.resume_at <= now + 2 * HOLD}
    resumed = [row for row in held if row.reason in over]
    for row in resumed:
        _move(session, row.id, _S.SENDING, Broadcast.resume_at == row.resume_at, reason=None, resume_at=None)
    return {row.id for row in resumed}


def _insert_request(session: Session, name: str, request: Mapping[str, Any], *is_over: ColumnElement[bool]) -> None:
    """Store a request under its name, in place of an earlier one that is over; refuse to replace any other.

    The update comes first: of two that insert the same name, both would then hold a shared lock on it and wait for
    each other's update. Raises RepeatedBroadcastException or IdempotencyKeyException.
    """
    named = BroadcastRequest.name == name
    if rows_matched(session, update(BroadcastRequest).where(named, *is_over).values(request)):
        return
    try:
        session.execute(insert(BroadcastRequest).values(name=name, **request))
    except IntegrityError as error:
        columns = select(BroadcastRequest.fingerprint, BroadcastRequest.broadcast_id)
        earlier = session.execute(columns.where(named)).one()
        if earlier.fingerprint != request["fingerprint"]:
            raise IdempotencyKeyException from error
        raise RepeatedBroadcastException(earlier.broadcast_id) from error


def _replace_request(session: Session, fingerprint: str, request: Mapping[str, Any]) -> None:
    """Let the request of a message name the newest broadcast that was asked for on purpose, whatever it named before.

    Of more than two at once, some have to be tried again.
    """
    replace_it = update(BroadcastRequest).where(BroadcastRequest.name == fingerprint).values(request)
    if not rows_matched(session, replace_it):
        try:
            session.execute(insert(BroadcastRequest).values(name=fingerprint, **request))
        except IntegrityError:  # somebody else has just inserted it
            rows_matched(session, replace_it)


def _refuse_if_under_way(session: Session, fingerprint: str) -> None:
    """Raise RepeatedBroadcastException if a broadcast of the same message to the same audience has not ended.

    A request names the newest broadcast of its message only, and an older one may still be on its way.
    """
    whole = select(Broadcast).options(undefer(Broadcast.contents), undefer(Broadcast.html))
    for other in session.scalars(whole.where(Broadcast.finished_at.is_(None)).order_by(Broadcast.id)):
        message = Message(other.title, other.contents, other.html)
        if _fingerprint(message, audiences.stored_in(other)) == fingerprint:
            raise RepeatedBroadcastException(other.id)


def find_work(session: Session, now: datetime) -> list[Work]:
    """End the holds that are over, and return what senders have to do: urgent broadcasts first, then the oldest.

    A paused broadcast is among it until its ledger is filled, because its audience is that of its start.
    """
    filled = (Broadcast.filled_to >= Broadcast.audience_end).label("filled")
    rows = session.execute(
        select(Broadcast.id, Broadcast.status, Broadcast.reason, Broadcast.resume_at, filled)
        .where(or_(Broadcast.status.in_([_S.SENDING, _S.PAUSED]), _is_being_cancelled()))
        .order_by(Broadcast.urgent.desc(), Broadcast.id)
    ).all()
    resumed = _end_holds(session, rows, now)
    work = [Work(row.id, _S.SENDING if row.id in resumed else row.status, bool(row.filled)) for row in rows]
    return [one for one in work if one.status is not _S.PAUSED or not one.filled]


def going_on(session: Session) -> Sequence[int]:
    """Return the broadcasts that are sending, or will be without anybody's doing."""
    return session.execute(select(Broadcast.id).where(_goes_on()).order_by(Broadcast.id)).scalars().all()


def message_of(session: Session, broadcast_id: int) -> Message:
    """Return what a broadcast says; it never changes."""
    columns = select(Broadcast.title, Broadcast.contents, Broadcast.html)
    title, contents, html = session.execute(columns.where(Broadcast.id == broadcast_id)).one()
    return Message(subject=title, text=contents, html=html)


def hold(session: Session, broadcast_id: int, *, reason: str, now: datetime) -> None:
    """Let a broadcast that the mail service holds up rest, and say why. Raises UnknownBroadcastException."""
    _move(session, broadcast_id, _S.PAUSED, Broadcast.status == _S.SENDING, reason=reason, resume_at=now + HOLD)


def break_circuit(session: Session, broadcast_id: int, reason: str, now: datetime, *, since: datetime | None) -> bool:
    """Let a broadcast rest until somebody resumes it, and say why, unless somebody paused it; return whether it did.

    `since` is the last break that the caller knew of: if there has been another, its reason is out of date. Raises
    UnknownBroadcastException.
    """
    is_news = Broadcast.circuit_broken_at.is_not_distinct_from(since)
    values = {"reason": reason, "resume_at": None, "circuit_broken_at": now}
    return bool(_move(session, broadcast_id, _S.PAUSED, _goes_on(), is_news, **values))


def pause(session: Session, broadcast_id: int) -> None:
    """Let a broadcast rest until somebody resumes it. Raises UnknownBroadcastException.

    One that has ended stays ended, and one that waits for somebody already keeps its reason, which may be the circuit
    breaker's.
    """
    _move(session, broadcast_id, _S.PAUSED, _goes_on(), reason=PAUSED_BY_HAND, resume_at=None)


def resume(session: Session, broadcast_id: int) -> None:
    """Let a paused broadcast go on. Raises UnknownBroadcastException."""
    _move(session, broadcast_id, _S.SENDING, Broadcast.status == _S.PAUSED, reason=None, resume_at=None)


def hurry(session: Session, broadcast_id: int) -> None:
    """Let a broadcast that has not ended go before the others from now on. Raises UnknownBroadcastException."""
    _lock_row(session, broadcast_id)
    under_way = update(Broadcast).where(Broadcast.id == broadcast_id, Broadcast.finished_at.is_(None))
    session.execute(under_way.values(urgent=True))


def cancel(session: Session, broadcast_id: int) -> None:
    """End a broadcast; the sender marks what is left of it as cancelled. Raises UnknownBroadcastException."""
    _move(session, broadcast_id, _S.CANCELLED, reason=None, resume_at=None)


def cancel_rest(session: Session, broadcast_id: int, now: datetime) -> bool:
    """Cancel the next chunk of what is left of a cancelled broadcast; return whether there was any.

    Raises UnknownBroadcastException.
    """
    return _lock_row(session, broadcast_id) is _S.CANCELLED and ledger.cancel_rest(session, broadcast_id, now)


def retry(session: Session, broadcast_id: int, before: datetime, *, begun: bool = False) -> bool:
    """Send again to the next chunk of those who failed or were cancelled before a time; return whether there was any.

    Call it with the same `before`, each time in a transaction of its own, until it returns False. Who fails again later
    than `before` is not queued again, so that this comes to an end. `begun` is True at all calls but the first: those
    stop when somebody has cancelled the broadcast in between. The first takes back a cancellation that senders are
    still carrying out, and leaves queued who is queued. Raises UnknownBroadcastException.
    """
    if _lock_row(session, broadcast_id) is _S.CANCELLED and begun:
        return False
    again = ledger.queue_again(session, broadcast_id, before)
    ended = Broadcast.status.in_([_S.SENT, _S.CANCELLED]) if again else _is_being_cancelled()
    _move(session, broadcast_id, _S.SENDING, ended, reason=None, resume_at=None, finished_at=None)
    return again


def finish(session: Session, broadcast_id: int, now: datetime) -> bool:
    """End a broadcast of which every recipient is settled; return whether it did. Raises UnknownBroadcastException."""
    if not ledger.is_settled(session, broadcast_id):
        return False
    _lock_row(session, broadcast_id)
    if not ledger.is_settled(session, broadcast_id):
        return False
    done = and_(Broadcast.filled_to >= Broadcast.audience_end, Broadcast.finished_at.is_(None))
    cancelled = update(Broadcast).where(Broadcast.id == broadcast_id, Broadcast.status == _S.CANCELLED, done)
    return bool(
        _move(session, broadcast_id, _S.SENT, done, finished_at=now)
        or rows_matched(session, cancelled.values(finished_at=now))
    )


def status_of(session: Session, broadcast_id: int) -> BroadcastStatus:
    """Return the status of a broadcast, without counting. Raises UnknownBroadcastException."""
    status = session.execute(select(Broadcast.status).where(Broadcast.id == broadcast_id)).scalar()
    if status is None:
        raise UnknownBroadcastException
    return status


def is_moving(session: Session, broadcast_id: int) -> bool:
    """Return whether a broadcast is sending or being cancelled, without counting. Raises UnknownBroadcastException."""
    moving = or_(Broadcast.status == _S.SENDING, _is_being_cancelled())
    found = session.execute(select(moving).where(Broadcast.id == broadcast_id)).scalar()
    if found is None:
        raise UnknownBroadcastException
    return bool(found)


def recipients_of(session: Session, broadcast_id: int) -> int:
    """Return how many recipients a broadcast was promised at its start."""
    return session.execute(select(Broadcast.recipients).where(Broadcast.id == broadcast_id)).scalar_one()


def page(session: Session, *, before: int = LARGEST_ID, limit: int) -> Sequence[int]:
    """Return the ids of broadcasts, newest first; `before` is the last id of the page before."""
    ids = select(Broadcast.id).where(Broadcast.id < before).order_by(Broadcast.id.desc()).limit(limit)
    return session.execute(ids).scalars().all()


def _goes_on() -> ColumnElement[bool]:
    """Return what holds for a broadcast that is sending, or will be without anybody's doing."""
    return or_(Broadcast.status == _S.SENDING, and_(Broadcast.status == _S.PAUSED, Broadcast.resume_at.is_not(None)))


def _is_being_cancelled() -> ColumnElement[bool]:
    return and_(Broadcast.status == _S.CANCELLED, Broadcast.finished_at.is_(None))


def _lock_row(session: Session, broadcast_id: int) -> BroadcastStatus:
    """Let nobody else change a broadcast before the transaction ends; return its status.

    Raises UnknownBroadcastException. An update, because SQLite has no FOR UPDATE and locks at the first write.
    """
    session.execute(update(Broadcast).where(Broadcast.id == broadcast_id).values(status=Broadcast.status))
    return status_of(session, broadcast_id)


def _move(
    session: Session, broadcast_id: int, status: BroadcastStatus, *conditions: ColumnElement[bool], **values: Any
) -> int:
    """Change the status of a broadcast if it may come to it; return whether it did. Raises UnknownBroadcastException.

    It is locked by its id first. A condition about the status lets a database come to the row by the index of
    statuses, and of two that come from both sides one would have to give way.
    """
    if _lock_row(session, broadcast_id) not in MOVES[status]:
        return 0
    this = Broadcast.id == broadcast_id
    return rows_matched(session, update(Broadcast).where(this, *conditions).values(status=status, **values))


def _identity(whom: Audience) -> list[str]:
    """Return what tells an audience from others; nothing for everybody. Two spellings of one range are the same."""
    return [] if whom.versions is None else [repr(whom.versions.intervals), str(whom.include_unknown)]


def _words(text: str) -> str:
    """Return a text without what a form, a file or a command changes: ends of lines, byte-order marks, blanks."""
    text = _LINE_END.sub("\n", text.replace(BYTE_ORDER_MARK, ""))
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _fingerprint(message: Message, whom: Audience) -> str:
    """Return what tells a notice from others: what it says, and whom it is for."""
    own_html = [] if message.html is None else [message.html]
    words = (_words(part) for part in (message.subject, message.text, *own_html))
    return _digest("message", *words, *_identity(whom))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
