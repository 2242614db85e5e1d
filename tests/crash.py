"""What becomes of a broadcast when its senders are killed, replaced, left without replies, or many.

tests/test_crash.py runs the scenes in small; `python -m tests.crash` (make crash-test) runs them in full.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, func, insert, select, text, update
from sqlalchemy.orm import Session, sessionmaker

from registration import broadcasts, ledger, messages
from registration.db import Base, engine_options
from registration.models import (
    BroadcastStatus,
    Delivery,
    DeliveryStatus,
    Pace,
    Registration,
    RegistrationCount,
    RegistrationStatus,
)

from . import mariadb, ses_fake
from .sender_process import POINTS, Orders, in_flight, longest_fill
from .ses_fake import SpawnedFake
from .waiting import until

ROOT = Path(__file__).parent.parent
MESSAGE = messages.compose("OpenEMR 7.0.3 (2) closes a hole", "Please update today.\n" * 20)
DRAIN_SECONDS = 30
REGISTERED_AT_ONCE = 100_000
"""A million in one statement takes a busy machine longer than a statement may."""
STARTED = "the sender started"


@dataclass
class Figures:
    """How a scene ended. `in_doubt` counts the messages of calls in flight at a kill, or left without a reply."""

    recipients: int
    stops: int
    accepted: int
    duplicates: int
    lost: int
    in_doubt: int
    beyond: int
    """Copies of a message beyond one for each time it was in doubt."""
    statuses: Counter[str]
    seconds: float
    slowest_stop: float = 0.0

    def check(self) -> None:
        """Raise AssertionError unless nobody was lost, nobody got a copy without need, and the figures add up."""
        assert self.lost == 0, self
        assert self.beyond == 0, self
        assert self.duplicates <= self.in_doubt, self
        assert self.statuses["queued"] == self.statuses["sending"] == self.statuses["failed"] == 0, self
        assert self.recipients == self.statuses.total(), self


@dataclass
class Process:
    """A process that sends."""

    popen: subprocess.Popen[str]
    log: Path
    die: str = ""

    @property
    def calls(self) -> Path:
        """Return the file in which it notes its calls."""
        return self.log.with_suffix(".calls")

    def order(self, orders: Orders) -> None:
        assert self.popen.stdin is not None
        self.die = orders.die
        self.popen.stdin.write(json.dumps(asdict(replace(orders, calls=str(self.calls)))) + "\n")
        self.popen.stdin.flush()

    def await_start(self, seconds: float = 30) -> None:
        """Wait until the sender in it has started, or it has ended."""
        until(lambda: STARTED in self.log.read_text() or self.popen.poll() is not None, seconds)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def terminate(self) -> float:
        """Ask it to end as a deployment does, demand that it does so well and in time, and return how long it took."""
        begun = time.monotonic()
        self.popen.terminate()
        assert self.popen.wait(DRAIN_SECONDS) == 0, self.log.read_text()[-2000:]
        return time.monotonic() - begun


@dataclass
class Scene:
    """A database, a stand-in for SES, and processes that send."""

    url: str
    fake: SpawnedFake
    folder: Path
    processes: list[Process] = field(default_factory=list)
    random: random.Random = field(default_factory=lambda: random.Random(1))

    def __post_init__(self) -> None:
        self.engine = create_engine(**engine_options(self.url, pool_size=10))
        self.sessions: sessionmaker[Session] = sessionmaker(self.engine)
        self.doubts: Counter[str] = Counter()
        self.stops = 0
        self.slowest_stop = 0.0
        self.begun = time.monotonic()
        self.spares: list[Process] = []
        self.left_at_last_kill = 0
        Base.metadata.create_all(self.engine)
        with self.sessions.begin() as session:
            session.execute(insert(Pace).values(id=1, free_at=0, factor=1, throttled_at=0, asked_at=0))
            session.execute(insert(RegistrationCount).values(id=1, up_to_id=0, registrations=0))

    def register(self, number: int) -> None:
        """Store registrations, clinic-1 to clinic-`number`, a million at most."""
        first = "SELECT 1 AS n UNION ALL SELECT n + 1 FROM numbers WHERE n < 1000"
        blob = "RANDOMBLOB(16)" if self.engine.dialect.name == "sqlite" else "UNHEX(REPLACE(UUID(), '-', ''))"
        address = "'clinic-' || k || '@example.org'"
        if self.engine.dialect.name != "sqlite":
            address = "CONCAT('clinic-', k, '@example.org')"
        insertion = (
            "INSERT INTO registration (product_id, email, email_key, status, created_at)"
            f" WITH RECURSIVE numbers AS ({first}) SELECT {blob}, {address}, {address}, 'active', '2026-01-01'"
            " FROM (SELECT (a.n - 1) * 1000 + b.n AS k FROM numbers a, numbers b) AS ks"
            " WHERE k > :after AND k <= :up_to ORDER BY k"
        )
        for after in range(0, number, REGISTERED_AT_ONCE):
            with self.sessions.begin() as session:
                up_to = min(after + REGISTERED_AT_ONCE, number)
                session.execute(text(insertion), {"after": after, "up_to": up_to})

    def start(self) -> int:
        """Start a broadcast to everybody."""
        with self.sessions.begin() as session:
            return broadcasts.start(session, MESSAGE, datetime.now(UTC), idempotency_key=uuid.uuid4().hex)

    def spare(self) -> Process:
        """Begin a process that waits for its orders."""
        return self._spawn("-m", "tests.sender_process")

    def prepared(self, orders: Orders) -> Process:
        """Give a process its orders, and let the next one get ready meanwhile."""
        if not self.spares:
            self.spares.append(self.spare())
        process = self.spares.pop(0)
        self.spares.append(self.spare())
        process.order(orders)
        return process

    def plain(self, *, rate: float = 0.0) -> Process:
        """Begin a process as production does."""
        return self._spawn("application.py", "--sender", SENDING_RATE=str(rate))

    def _spawn(self, *arguments: str, **environment: str) -> Process:
        settings = {
            "DB_CONN_STR": self.url,
            "SECRET_PIN": "correct horse battery staple",
            "PUBLIC_URL": "https://reg.example.org",
            "TOKEN_KEYS": "a key of at least thirty-two characters",
            "SES_REGION": "us-east-1",
            "SES_SENDER": "notices@example.org",
            "AWS_ACCESS_ID": "test",
            "AWS_SECRET_KEY": "test",
            "AWS_ENDPOINT_URL_SESV2": self.fake.url,
            "LOG_FILE": os.devnull,
        }
        log = self.folder / f"sender-{len(self.processes)}.log"
        with log.open("w") as output:
            popen = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env={**os.environ, **settings, **environment},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.processes.append(Process(popen, log))
        return self.processes[-1]

    def statuses(self, broadcast_id: int) -> Counter[str]:
        with self.sessions.begin() as session:
            return Counter({status.value: n for status, n in ledger.counts(session, broadcast_id).items()})

    def has_ended(self, broadcast_id: int) -> bool:
        with self.sessions.begin() as session:
            return broadcasts.status_of(session, broadcast_id) is BroadcastStatus.SENT

    def note_kill(self, process: Process) -> None:
        """Note the messages of the calls that a process had in flight when it was killed, and nothing else."""
        self.doubts.update(in_flight(process.calls))
        self.stops += 1

    def finish(self, broadcast_id: int, seconds: float) -> Figures:
        """Wait for the end of a broadcast, stop what runs, and count."""
        until(lambda: self.has_ended(broadcast_id), seconds)
        self.stop()
        copies, unanswered = self.fake.copies()
        doubts = self.doubts + Counter(unanswered)
        of_broadcast = select(Registration.email, Delivery.status).join(
            Delivery, Delivery.registration_id == Registration.id
        )
        with self.sessions.begin() as session:
            rows = session.execute(of_broadcast.where(Delivery.broadcast_id == broadcast_id)).all()
        return Figures(
            recipients=len(rows),
            stops=self.stops,
            accepted=sum(copies.values()),
            duplicates=sum(copies.values()) - len(copies),
            lost=sum(row.email not in copies for row in rows if row.status not in ("skipped", "cancelled")),
            in_doubt=doubts.total(),
            beyond=sum(max(0, number - 1 - doubts[address]) for address, number in copies.items()),
            statuses=Counter(row.status.value for row in rows),
            seconds=time.monotonic() - self.begun,
            slowest_stop=self.slowest_stop,
        )

    def stop(self) -> None:
        """End all processes well."""
        for process in self.processes:
            if process.popen.poll() is None:
                if process in self.spares or STARTED not in process.log.read_text():
                    process.kill()
                else:
                    process.terminate()
        self.spares.clear()

    def close(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.kill()
            if process.popen.stdin is not None:
                process.popen.stdin.close()
        self.engine.dispose()


@contextmanager
def scene(url: str, **conduct: Any) -> Iterator[Scene]:
    """Set a scene on an empty database."""
    with tempfile.TemporaryDirectory(prefix="crash-") as folder, ses_fake.spawned(**conduct) as fake:
        made = Scene(url, fake, Path(folder))
        try:
            yield made
        finally:
            made.close()


def kill(stage: Scene, *, recipients: int, kills: Sequence[tuple[int, int]], lease: float = 5.0) -> Figures:
    """Kill one sender after another, at random moments and at each point of a batch's way, then let one finish.

    `kills` holds numbers of senders that run at once, each with a number of kills.
    """
    stage.register(recipients)
    broadcast_id = stage.start()
    usual = Orders(lease=lease, batch_seconds=0.05)
    running: list[Process] = []
    begun = time.monotonic()
    plan = [senders for senders, number in kills for _ in range(number)]
    for number, senders in enumerate(plan):
        while len(running) < senders:
            left = stage.statuses(broadcast_id)["queued"] or recipients
            rate = _rate_for(left, len(plan) - number, begun, number) / senders
            life = number + len(running)
            die = f"{POINTS[life // 2 % len(POINTS)]}:{stage.random.randint(1, 6)}" if life % 2 else ""
            running.append(stage.prepared(replace(usual, die=die, rate=rate)))
        victim = running.pop(0)
        victim.await_start()
        if victim.die:
            with suppress(subprocess.TimeoutExpired):
                victim.popen.wait(5)
        else:
            time.sleep(stage.random.uniform(0.0, 0.6))
        victim.kill()
        stage.note_kill(victim)
    stage.left_at_last_kill = stage.statuses(broadcast_id)["queued"]
    stage.prepared(usual)
    return stage.finish(broadcast_id, 120)


def _rate_for(left: int, kills: int, begun: float, killed: int) -> float:
    """Return the rate at which what is left lasts until the last kill."""
    seconds_a_kill = (time.monotonic() - begun) / killed if killed > 4 else 2.0
    return max(20.0, 2.5 * left / (kills * seconds_a_kill))


def drain(stage: Scene, *, recipients: int, restarts: int) -> Figures:
    """Replace the sender again and again in mid-send, as deployments do."""
    stage.register(recipients)
    broadcast_id = stage.start()
    for _ in range(restarts):
        process = stage.plain(rate=0.6 * recipients / restarts)
        process.await_start()
        time.sleep(stage.random.uniform(0.2, 1.2))
        stage.slowest_stop = max(stage.slowest_stop, process.terminate())
        stage.stops += 1
        left = stage.statuses(broadcast_id)
        assert left["sending"] == 0, left
    stage.plain()
    return stage.finish(broadcast_id, 120)


def lose_replies(stage: Scene, *, recipients: int) -> Figures:
    """Send while replies are lost in every way."""
    stage.register(recipients)
    broadcast_id = stage.start()
    stage.prepared(Orders(lease=15, read_seconds=5))
    figures = stage.finish(broadcast_id, 240)
    _, unanswered = stage.fake.copies()
    reasons = select(Registration.email, Delivery.reason).join(Delivery, Delivery.registration_id == Registration.id)
    with stage.sessions.begin() as session:
        given = {row.email: row.reason for row in session.execute(reasons)}
    for address in unanswered:
        assert "did not answer" in (given[address] or ""), given[address]
    figures.stops = stage.fake.read()["lost_calls"]
    return figures


def prove_by_event(stage: Scene, *, recipients: int) -> Figures:
    """Lose every reply, and let events of the mail service prove before the lease ends that it accepted."""
    stage.register(recipients)
    broadcast_id = stage.start()
    stage.prepared(Orders(lease=20, batch_seconds=0.25))
    accepted: set[int] = set()
    open_ones = select(Delivery.id).where(Delivery.status == DeliveryStatus.SENDING, Delivery.reason.is_not(None))
    deadline = time.monotonic() + 60
    while not stage.has_ended(broadcast_id):
        assert time.monotonic() < deadline, stage.statuses(broadcast_id)
        with stage.sessions.begin() as session:
            ids = session.execute(open_ones).scalars().all()
            ledger.accept(session, dict.fromkeys(ids, "0100-event"), datetime.now(UTC))
        accepted |= set(ids)
        time.sleep(0.05)
    assert len(accepted) == recipients, len(accepted)
    return stage.finish(broadcast_id, 10)


def share(stage: Scene, *, recipients: int, senders: int) -> Figures:
    """Let several senders work on one broadcast; none may log so much as a warning."""
    stage.register(recipients)
    senders_begun = [stage.plain() for _ in range(senders)]
    for process in senders_begun:
        process.await_start()
    stage.begun = time.monotonic()
    figures = stage.finish(stage.start(), 300)
    for process in senders_begun:
        for line in process.log.read_text().splitlines():
            assert json.loads(line)["level"] == "INFO", line
    return figures


def opt_out(stage: Scene, *, recipients: int) -> Figures:
    """Let the last fifth opt out, bounce or complain while the first are being sent to."""
    stage.register(recipients)
    broadcast_id = stage.start()
    stage.prepared(Orders(rate=recipients / 10)).await_start()
    until(lambda: stage.statuses(broadcast_id).total() == recipients)
    gone = [f"clinic-{number}@example.org" for number in range(recipients - recipients // 5 + 1, recipients + 1)]
    with stage.sessions.begin() as session:
        for number, status in enumerate(
            (RegistrationStatus.OPTED_OUT, RegistrationStatus.BOUNCED, RegistrationStatus.COMPLAINED)
        ):
            session.execute(update(Registration).where(Registration.email.in_(gone[number::3])).values(status=status))
    figures = stage.finish(broadcast_id, 60)
    assert figures.statuses["skipped"] == len(gone), figures
    assert figures.accepted == recipients - len(gone), figures
    return figures


def fill(stage: Scene, *, recipients: int, kills: int) -> dict[str, float]:
    """Fill the ledger of many while others register and the sender is killed; return the slowest of each in seconds.

    Its transactions are timed in the senders, from the first statement to the end of the commit.
    """
    stage.register(recipients)
    broadcast_id = stage.start()
    slowest = {"registration": 0.0}
    over = threading.Event()

    def register() -> None:
        with stage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not over.is_set():
                address = f"new-{uuid.uuid4().hex}@example.org"
                begun = time.monotonic()
                values = {"product_id": uuid.uuid4(), "email": address, "email_key": address}
                connection.execute(
                    insert(Registration).values(
                        **values, status=RegistrationStatus.ACTIVE, created_at=datetime.now(UTC)
                    )
                )
                slowest["registration"] = max(slowest["registration"], time.monotonic() - begun)
                over.wait(0.005)

    thread = threading.Thread(target=register)
    thread.start()
    try:
        rows = select(func.count()).where(Delivery.broadcast_id == broadcast_id)
        for number in range(kills + 1):
            process = stage.prepared(Orders(rate=1.0))
            process.await_start()
            if number < kills:
                time.sleep(stage.random.uniform(0.0, 1.0))
                process.kill()
                stage.stops += 1
            else:
                until(lambda: _is_filled(stage, broadcast_id), 300)
        with stage.sessions.begin() as session:
            assert session.execute(rows).scalar_one() == recipients
            broadcasts.cancel(session, broadcast_id)
    finally:
        over.set()
        thread.join()
    stage.stop()
    return slowest | {"transaction": max(longest_fill(process.calls) for process in stage.processes)}


def _is_filled(stage: Scene, broadcast_id: int) -> bool:
    with stage.sessions.begin() as session:
        (work,) = broadcasts.find_work(session, datetime.now(UTC))
        return work.filled


def show(what: str, figures: Figures) -> None:
    """Check figures and print them as a line of a table."""
    figures.check()
    print(
        f"| {what} | {figures.recipients:,} | {figures.stops} | {figures.lost} | {figures.duplicates} "
        f"| {figures.in_doubt} | {figures.seconds:.0f} s |",
        flush=True,
    )


def main(names: Sequence[str]) -> None:
    """Run all scenes in full, or those that are named."""
    scenes: dict[str, Callable[[mariadb.Server], None]] = {
        "kill": _kill_in_full,
        "drain": _drain_in_full,
        "lose": _lose_in_full,
        "share": _share_in_full,
        "fill": _fill_in_full,
    }
    print("| scene | recipients | kills, restarts or lost replies | lost | copies | in flight or unanswered | took |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with mariadb.running() as server:
        for name, run in scenes.items():
            if not names or name in names:
                run(server)


def _kill_in_full(server: mariadb.Server) -> None:
    with scene(server.create_database("crash_kill"), latency=0.06) as stage:
        show("kill -9; one sender, then two", kill(stage, recipients=10_000, kills=[(1, 52), (2, 52)]))
        print(f"  ({stage.left_at_last_kill:,} were still queued at the last kill)", flush=True)


def _drain_in_full(server: mariadb.Server) -> None:
    with scene(server.create_database("crash_drain"), latency=0.06) as stage:
        figures = drain(stage, recipients=10_000, restarts=50)
        show(f"SIGTERM in mid-send (slowest end {figures.slowest_stop:.1f} s)", figures)
        assert figures.duplicates == 0, figures


def _lose_in_full(server: mariadb.Server) -> None:
    with scene(server.create_database("crash_lose"), lost=0.05, rate=400, latency=0.02) as stage:
        show("5 % of the replies lost", lose_replies(stage, recipients=10_000))
    with scene(server.create_database("crash_prove"), lost=1.0, lost_kinds="500", granted=400) as stage:
        figures = prove_by_event(stage, recipients=50)  # one call; more would be tried one by one
        assert figures.duplicates == 0, figures
        show("all replies lost, events prove it", figures)


def _share_in_full(server: mariadb.Server) -> None:
    with scene(server.create_database("crash_share")) as stage:
        figures = share(stage, recipients=100_000, senders=4)
        show("four senders", figures)
        assert figures.duplicates == 0, figures
    with tempfile.TemporaryDirectory() as folder, scene(f"sqlite:///{folder}/share.db") as stage:
        figures = share(stage, recipients=20_000, senders=2)
        show("two senders on SQLite", figures)
        assert figures.duplicates == 0, figures


def _fill_in_full(server: mariadb.Server) -> None:
    with scene(server.create_database("crash_skip")) as stage:
        show("opt-outs, bounces and complaints in mid-send", opt_out(stage, recipients=5_000))
    with scene(server.create_database("crash_fill")) as stage:
        slowest = fill(stage, recipients=1_000_000, kills=10)
        print(
            f"  A ledger of 1,000,000, its sender killed {stage.stops} times in mid-fill: one row each;"
            f" slowest registration meanwhile {slowest['registration'] * 1000:.0f} ms,"
            f" longest transaction of the fill {slowest['transaction'] * 1000:.0f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
