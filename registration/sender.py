"""The sender: one thread looks for work, one claims and paces it, several send it and settle the outcomes."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from . import broadcasts, bulk_turns, ledger, mailers, pacing
from .broadcasts import Work
from .bulk_turns import BulkTurn
from .claims import Call, Claims
from .clock import Clock
from .confirmation_sender import ConfirmationSender
from .db import code_of, is_deadlock
from .flow import MOST_IN_FLIGHT, Flow
from .group_commit import GroupCommit
from .housekeeping import Housekeeper, Timetable
from .ledger import Batch
from .mailers import Mailer, Outcome, Recipient, Verdict
from .messages import Message
from .models import BroadcastStatus
from .tokens import Tokens
from .trouble import Troubles

LOOK_SECONDS = 0.05
"""Between two looks for work; the longest that a broadcast waits for an idle sender."""
BUSY_LOOK_SECONDS = 0.5
"""Between two looks while there is work; claiming sees a pause by itself."""
TROUBLE_SECONDS = 1.0
"""Between two attempts while the database is in trouble."""
SETTLE_SECONDS = 12.0
"""How long outcomes are kept in hand by a sender that is to end while the database is in trouble."""
RELEASE_SECONDS = 1.0
"""How long what waits is given back; then it is left to the end of its leases."""
GRACE_SECONDS = 15.0
"""For so long after its start or trouble with the database a sender leaves leases alone that have run out.

Another sender may still be about to write the outcomes of those calls down.
"""
LATE_SECONDS, LATE_SCARCE_SECONDS = 0.5, 0.1
"""A call that comes later than this is given back: its broadcast may be paused by now, or its lease over. Scarce bulk
calls have less time, so that a late one does not run into the next."""
LONGEST_CALL_SECONDS = 50.0
"""A call that has not ended by then, a little before its lease does, counts as unanswered. Time-outs limit each read,
so an answer that comes byte by byte would keep it open for ever; two name servers that are silent take 40 seconds."""
CONFIRMATIONS, BUSY_CONFIRMATIONS = 10, 2
"""Confirmation mails sent at one look; fewer while a broadcast waits for it."""
BREATH_SECONDS = 0.005
"""Between two claims when nothing could be claimed."""
_ACCOUNT_SECONDS, _EXPIRE_SECONDS, _CLOCK_SECONDS = 1.0, 1.0, 60.0
"""Between two looks at whether the account is to be asked about, at leases that have run out, and at the clock."""

_NO_END = "The mail service did not end its answer, so the message may or may not have been accepted."

log = logging.getLogger(__name__)


@dataclass
class Sender:
    """Sends every broadcast that is under way until it is told to stop.

    `rate_limit` is the operator's own limit in recipients a second, infinite to leave it to the mail service.
    """

    sessions: sessionmaker[Session]
    mailer: Mailer
    rate_limit: float
    ip_retention: timedelta
    tokens: Tokens
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    stopping: threading.Event = field(default_factory=threading.Event)
    ending: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._work: list[Work] = []
        self._sending: set[int] = set()
        self._flow = Flow()
        # Not a SimpleQueue: its `get` with a timeout can wait for ever when threads compete (seen in CPython 3.11).
        self._calls: queue.Queue[Call] = queue.Queue()
        self._scarce_calls: queue.Queue[Call] = queue.Queue()
        self._threads: dict[str, threading.Thread] = {}
        self._open_calls: dict[threading.Thread, tuple[Call, float]] = {}
        self._troubles = Troubles()
        self._clock = Clock(lambda: self.now())  # noqa: PLW0108  `now` may be replaced
        self._expire_from = time.monotonic() + GRACE_SECONDS
        self._has_more = False
        self._settled = GroupCommit(self._write_down, most=MOST_IN_FLIGHT)
        self._timetable = Timetable()
        self._housekeeper = Housekeeper(self.sessions, ip_retention=self.ip_retention)
        self._confirmations = ConfirmationSender(
            self.sessions, self.mailer, self.tokens, self.rate_limit, self.stopping
        )
        self._message_of = lru_cache(maxsize=8)(self._load_message)
        self._claims = Claims(
            self.sessions,
            self._flow,
            self._troubles,
            self._clock,
            lambda one: self.mailer.largest_batch(self._message_of(one)),
        )

    def run(self) -> None:
        """Work until `stop`; calls in flight are finished first, or given up. No failure ends it.

        This thread looks; another claims and some make the calls, as long as there is work.
        """
        log.info("the sender started")
        tended, started = True, False
        while not self.stopping.wait(0 if tended and not started else LOOK_SECONDS):
            can_wait = self._work and self._has_more and not tended
            if can_wait and not self._timetable.is_due("look", BUSY_LOOK_SECONDS):
                continue
            if tended := self._guard(self.look):
                self._claims.not_before = 0.0
            started = bool(self._work) and self._guard(self._start_tasks)
            if not self._work:
                self._release_all_waiting()
        while alive := [thread for thread in self._threads.values() if thread.is_alive()]:
            alive[0].join(LOOK_SECONDS)
            self._guard(self._give_up_calls)
        self._release_all_waiting()
        log.info("the sender stopped")

    def pause(self) -> None:
        """Ask for the end of `run`, to go on later: outcomes are written down first, however long that takes."""
        self.stopping.set()

    def stop(self) -> None:
        """Ask for the end.

        Safe in a signal handler unless `run` is in the main thread: the handler would then wait for the event's lock
        that the thread it interrupted holds.
        """
        self.ending.set()
        self.stopping.set()

    @property
    def has_work(self) -> bool:
        """Whether the last look found a broadcast under way."""
        return bool(self._work)

    def finds_work(self) -> bool:
        """Look once as `run` does; return whether a broadcast is under way, in trouble as far as the last look told."""
        self._guard(self.look)
        return self.has_work

    def look(self) -> bool:
        """See what there is to do and do all of it but the sending; return whether there was anything."""
        if has_stepped := self._clock.has_stepped():  # what this sender has in hand may look as if it were over
            self._expire_from = time.monotonic() + GRACE_SECONDS
        if self._timetable.is_due("clock", _CLOCK_SECONDS) or has_stepped:
            with self._timetable.again_after_failure("clock"), self.sessions.begin() as session:
                self._clock.set(session)
        now = self._clock.time()
        with self.sessions.begin() as session:
            self._work = broadcasts.find_work(session, now)
        self._sending = {work.broadcast_id for work in self._work if work.status is BroadcastStatus.SENDING}
        if not self._work:
            self._message_of.cache_clear()  # a database that was restored gives ids out again
        self._ask_for_account(now)
        if self._work:
            with self.sessions.begin() as session:
                instant = self._clock.time().timestamp()  # the mail service may have taken a while
                self._flow.rate = pacing.current_rate(session, limit=self.rate_limit, now=instant)
                self._flow.are_bulk_calls_scarce = bulk_turns.are_scarce(session)
        self._give_up_calls()
        tended = [self._tend(work) for work in self._work]
        self._confirmations.send(self._clock.time(), BUSY_CONFIRMATIONS if self._work else CONFIRMATIONS)
        self._housekeeper.work(now)
        return any(tended)

    def _start_tasks(self) -> bool:
        """Start what is to be done beside looking and is not being done, each in a thread of its own, by name.

        Return whether claims have begun: the first call then leaves sooner if no look comes in between.
        """
        tasks: dict[str, Callable[[], None]] = {"claims": self._claim_calls}
        if self._flow.are_bulk_calls_scarce or not self._scarce_calls.empty():
            for number in range(2):  # one for the probe that follows a call
                tasks[f"scarce-calls-{number}"] = self._carry_out_scarce_calls
        for number in range(self._flow.calls_in_flight()):
            tasks[f"calls-{number}"] = partial(self._carry_out_calls, number)
        missing = [name for name in tasks if name not in self._threads or not self._threads[name].is_alive()]
        for name in missing:
            self._threads[name] = threading.Thread(target=tasks[name], name=name, daemon=True)
            self._threads[name].start()
        return "claims" in missing

    def _claim_calls(self) -> None:
        """Keep calls waiting for the threads that make them, and give back what waits at the end.

        Others go on with that before the calls in flight have ended, or a look that waits for the mail service.
        """
        while self._work and not self.stopping.is_set():
            if not self._guard(self._claim_ahead):
                self.stopping.wait(BREATH_SECONDS)
        self._release_all_waiting()

    def _claim_ahead(self) -> bool:
        """Claim the next lot unless enough calls wait or it is too early; return whether there was one."""
        enough = self._flow.calls_in_flight() + self._flow.calls_ahead()
        is_too_early = time.monotonic() < self._claims.not_before
        if self._calls.qsize() >= enough or is_too_early or self._clock.has_stepped():
            return False
        self._claims.not_before = 0.0
        for call in (lot := self._claim_lot()):
            (self._scarce_calls if call.is_scarce else self._calls).put(call)
        self._has_more = bool(lot) or self._claims.not_before > 0.0
        if not self._has_more:
            self._claims.not_before = time.monotonic() + LOOK_SECONDS
        return bool(lot)

    def _carry_out_calls(self, number: int) -> None:
        self._carry_out_from(self._calls, lambda: number < self._flow.calls_in_flight())

    def _carry_out_scarce_calls(self) -> None:
        """Make the scarce bulk calls, in threads of their own: a turn does not wait for the calls of one recipient."""
        self._carry_out_from(self._scarce_calls, lambda: self._flow.are_bulk_calls_scarce)
        if not self._is_given_up():
            self._release_waiting(self._scarce_calls)

    def _carry_out_from(self, calls: queue.Queue[Call], is_needed: Callable[[], bool]) -> None:
        """Make calls as they come, as long as there is work and this thread is needed for it."""
        while not self.stopping.is_set() and self._work and is_needed() and not self._is_given_up():
            with suppress(queue.Empty):
                self._guard(partial(self._carry_out, calls.get(timeout=LOOK_SECONDS)))

    def _is_given_up(self) -> bool:
        """Return whether this thread is not one of ours any more, because its last call did not end in time."""
        thread = threading.current_thread()
        return self._threads.get(thread.name) is not thread

    def _claim_lot(self) -> list[Call]:
        return self._claims.take([work.broadcast_id for work in self._work if work.status is BroadcastStatus.SENDING])

    def _tend(self, work: Work) -> bool:
        """Fill the ledger of a broadcast, take back what its senders lost, cancel what is left of it, or end it."""
        with self.sessions.begin() as session:
            filled = not work.filled and ledger.fill(session, work.broadcast_id)
        if work.status is BroadcastStatus.CANCELLED:
            with self.sessions.begin() as session:
                filled |= broadcasts.cancel_rest(session, work.broadcast_id, self._clock.time())
        with self.sessions.begin() as session:
            expire = time.monotonic() >= self._expire_from and self._timetable.is_due(
                f"expire {work.broadcast_id}", _EXPIRE_SECONDS
            )
            expired = expire and ledger.expire(session, work.broadcast_id, self._clock.time())
        # Not in the same transaction: whoever steers a broadcast locks its row first and deliveries then.
        with self.sessions.begin() as session:
            finished = work.filled and broadcasts.finish(session, work.broadcast_id, self._clock.time())
        if finished:
            log.info("a broadcast has ended", extra={"broadcast": work.broadcast_id})
        return filled or expired or finished

    def _carry_out(self, call: Call) -> bool:
        """Wait for the instant of a call, make it unless that has become wrong, and write down what came of it."""
        trouble = self._troubles.of(call.broadcast_id)
        try:
            if not call.batch.recipients:
                return True
            message = self._message_of(call.broadcast_id)
            may_leave = self._await_instant(call) and call.broadcast_id in self._sending
            if may_leave and trouble.may_leave(call.batch.lease):
                self._make(call, message)
            else:
                self._release(call)
        finally:
            trouble.end_probe(call.batch.lease)
        return True

    def _make(self, call: Call, message: Message) -> None:
        thread, begun, processor_begun = threading.current_thread(), time.monotonic(), time.thread_time()
        self._open_calls[thread] = call, begun
        outcomes = mailers.send(self.mailer, message, call.batch.recipients)
        was_given_up = self._open_calls.pop(thread, None) is None
        self._settle(call.batch, outcomes)
        if not was_given_up:
            self._flow.note_call(time.monotonic() - begun, time.thread_time() - processor_begun)
            self._heed(call, outcomes)

    def _give_up_calls(self) -> bool:
        """Take calls that do not end as unanswered, and let new threads take the place of theirs.

        If messages turn out to be accepted later, that is written down. Return True.
        """
        for thread, (call, begun) in list(self._open_calls.items()):
            if time.monotonic() - begun <= LONGEST_CALL_SECONDS or self._open_calls.pop(thread, None) is None:
                continue
            if self._threads.get(thread.name) is thread:
                del self._threads[thread.name]
            outcomes = [Outcome(Verdict.UNKNOWN, reason=_NO_END)] * len(call.batch.recipients)
            self._settle(call.batch, outcomes)
            self._heed(call, outcomes)
            self._troubles.of(call.broadcast_id).end_probe(call.batch.lease)
        return True

    def _await_instant(self, call: Call) -> bool:
        """Wait until a call may leave; return whether it may: not if it is late, or the sender is stopping.

        It is late as well when the process slept through its instant, because others may have sent it by then.
        """
        if call.is_scarce:
            leave_at, latest = call.due_at, call.due_at + LATE_SCARCE_SECONDS
        else:
            latest = call.due_at + LATE_SECONDS
            leave_at = self._flow.departure(call.due_at, len(call.batch.recipients), latest=latest)
        if leave_at > latest or self.stopping.wait(max(0.0, leave_at - time.monotonic())):
            return False
        return time.monotonic() <= latest

    def _release(self, call: Call) -> bool:
        self._troubles.of(call.broadcast_id).end_probe(call.batch.lease)
        with self.sessions.begin() as session:
            ledger.release(session, call.batch)
            if call.bulk_turn is BulkTurn.REGULAR:
                bulk_turns.miss(session)
        return True

    def _release_all_waiting(self) -> None:
        for calls in (self._calls, self._scarce_calls):
            self._release_waiting(calls)

    def _release_waiting(self, calls: queue.Queue[Call]) -> None:
        """Give back what waits for its instant; if the database is away for too long, the end of the leases does it."""
        give_up = time.monotonic() + RELEASE_SECONDS
        with suppress(queue.Empty):
            while time.monotonic() < give_up:
                if not self._guard(partial(self._release, calls.get_nowait())):
                    time.sleep(RELEASE_SECONDS / 4)

    def _settle(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        """Write the outcomes down, together with those that come meanwhile, and return when they are."""
        self._settled.commit((batch, outcomes))

    def _write_down(self, settled: Sequence[tuple[Batch, Sequence[Outcome]]]) -> list[None]:
        """Write outcomes down, however long the database is away: what is not written down is sent twice.

        A sender that is to end tries for a few seconds more.
        """
        give_up = math.inf
        while True:
            try:
                with self.sessions.begin() as session:
                    for batch, outcomes in _by_lease(settled):
                        ledger.settle(session, batch, outcomes, self._clock.time())
            except SQLAlchemyError as error:
                if self.ending.is_set():
                    give_up = min(give_up, time.monotonic() + SETTLE_SECONDS)
                if time.monotonic() > give_up:
                    raise
                if is_deadlock(error):
                    continue
                self._expire_from = time.monotonic() + GRACE_SECONDS
                trouble = {"error": type(error).__name__, "code": code_of(error)}
                log.warning("outcomes could not be written down yet", extra={"calls": len(settled), **trouble})
                time.sleep(TROUBLE_SECONDS)
            else:
                return [None] * len(settled)

    def _heed(self, call: Call, outcomes: Sequence[Outcome]) -> None:
        """Learn from a call: make smaller ones for a while, slow all senders down, or let its broadcast rest."""
        verdicts = {outcome.verdict for outcome in outcomes}
        was_one_too_many = len(outcomes) > 1 and self._note_bulk_call(call.bulk_turn, verdicts)
        if Verdict.APART in verdicts:
            self._flow.keep_apart()
        trouble = self._troubles.of(call.broadcast_id)
        was_unanswered = trouble.is_unanswered
        advice = self._troubles.judge(call.broadcast_id, outcomes, time.monotonic(), due_at=call.due_at)
        if was_unanswered and not trouble.is_unanswered:
            self._flow.keep_apart()  # perhaps one recipient gets an answer, and fifty do not
        if advice.hold is not None:
            if verdicts != {Verdict.UNREACHED} or not self._do_others_get_through(since=call.due_at):
                self._hold(call.broadcast_id, advice.hold)
        elif advice.slow_down and not was_one_too_many:
            with self.sessions.begin() as session:
                pacing.slow_down(session, now=self._clock.time().timestamp())

    def _do_others_get_through(self, *, since: float) -> bool:
        """Return whether any sender had a message accepted since ten seconds before an instant of `time.monotonic`.

        If so, the mail service is out of reach for this machine only, and that holds no broadcast up.
        """
        begun_at = self._clock.time() - timedelta(seconds=time.monotonic() - since)
        with self.sessions.begin() as session:
            return any(ledger.recent_rate(session, each, begun_at) for each in broadcasts.going_on(session))

    def _hold(self, broadcast_id: int, reason: str) -> None:
        self._sending.discard(broadcast_id)
        with self.sessions.begin() as session:
            broadcasts.hold(session, broadcast_id, reason=reason, now=self._clock.time())
        log.warning("a broadcast rests: the mail service holds it up", extra={"broadcast": broadcast_id})

    def _note_bulk_call(self, turn: BulkTurn | None, verdicts: Collection[Verdict]) -> bool:
        """Note whether a bulk call was let through; return whether it was refused for being one too many."""
        refused = verdicts == {Verdict.THROTTLED}
        if turn is None:
            if not self._flow.are_bulk_calls_scarce and self._flow.shows_scarce_bulk_calls(was_refused=refused):
                with self.sessions.begin() as session:
                    bulk_turns.note_scarce(session, now=self._clock.time().timestamp())
                self._flow.are_bulk_calls_scarce = True
                log.warning("one bulk call a second is let through; the others become calls of one recipient each")
            return False
        if turn is BulkTurn.PROBE and Verdict.ACCEPTED in verdicts:
            with self.sessions.begin() as session:
                bulk_turns.note_plenty(session)
            self._flow.are_bulk_calls_scarce = False
            log.info("bulk calls are let through again")
        if turn is BulkTurn.REGULAR and refused:
            with self.sessions.begin() as session:
                bulk_turns.postpone(session, now=self._clock.time().timestamp())
        return refused

    def _guard(self, piece_of_work: Callable[[], bool]) -> bool:
        """Do a piece of work and return what it returned; after a failure, which is logged, rest and return False.

        A transaction that the database chose to give way in a deadlock needs no rest.
        """
        try:
            return piece_of_work()
        except SQLAlchemyError as error:
            if is_deadlock(error):
                log.info("the sender gave way to somebody else in the database")
                return False
            self._expire_from = time.monotonic() + GRACE_SECONDS
            log.exception("the sender waits for the database")
        except Exception:
            log.exception("the sender failed and tries again")
        self.stopping.wait(TROUBLE_SECONDS)
        return False

    def _ask_for_account(self, now: datetime) -> None:
        """Let one of all senders ask the mail service for the account's quotas now and then.

        Each asks once when it starts, too: its first call then finds credentials and a connection ready. One that has
        to fetch them leaves late, and the next call of another sender is refused.
        """
        is_first = not self._timetable.was_ever_due("account")
        if not self._timetable.is_due("account", _ACCOUNT_SECONDS):
            return
        with self._timetable.again_after_failure("account"), self.sessions.begin() as session:
            due = pacing.needs_account(session, now=now.timestamp(), at_once=is_first)
        if due and (account := self.mailer.account()) is not None:
            with self.sessions.begin() as session:
                pacing.remember_account(session, account)

    def _load_message(self, broadcast_id: int) -> Message:
        with self.sessions.begin() as session:
            return broadcasts.message_of(session, broadcast_id)


def _by_lease(settled: Sequence[tuple[Batch, Sequence[Outcome]]]) -> list[tuple[Batch, list[Outcome]]]:
    """Return batches with their outcomes, those of one lease together, for one statement each.

    In the order of their deliveries, as others lock them.
    """
    together: dict[str, tuple[list[Recipient], list[Outcome]]] = {}
    for batch, outcomes in settled:
        recipients, theirs = together.setdefault(batch.lease, ([], []))
        recipients += batch.recipients
        theirs += outcomes
    merged = [(Batch(lease, recipients), outcomes) for lease, (recipients, outcomes) in together.items()]
    return sorted(merged, key=lambda one: min((recipient.delivery_id for recipient in one[0].recipients), default=0))
