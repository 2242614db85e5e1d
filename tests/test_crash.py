"""Senders that are killed, replaced, left without replies, or many: nobody lost, nobody twice without need."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from registration import ledger

from . import crash, mariadb, sender_process

pytestmark = pytest.mark.timeout(180)


def test_nobody_is_lost_when_senders_are_killed(mariadb_server: mariadb.Server) -> None:
    with crash.scene(mariadb_server.create_database("crash_kill"), latency=0.06) as stage:
        figures = crash.kill(stage, recipients=400, kills=[(1, 5), (2, 5)], lease=10)

    print(figures)
    figures.check()
    assert figures.stops == 10


def test_a_restart_in_mid_send_neither_loses_nor_repeats(mariadb_server: mariadb.Server) -> None:
    with crash.scene(mariadb_server.create_database("crash_drain"), latency=0.06) as stage:
        figures = crash.drain(stage, recipients=300, restarts=3)

    figures.check()
    assert figures.duplicates == 0


def test_lost_replies_cost_a_copy_at_most_and_say_so(mariadb_server: mariadb.Server) -> None:
    with crash.scene(mariadb_server.create_database("crash_lose"), lost=0.05, rate=400) as stage:
        figures = crash.lose_replies(stage, recipients=300)

    figures.check()
    assert figures.stops > 0


def test_an_event_that_proves_acceptance_before_the_lease_ends_saves_the_copy(mariadb_server: mariadb.Server) -> None:
    with crash.scene(mariadb_server.create_database("crash_prove"), lost=1.0, lost_kinds="500", granted=400) as stage:
        figures = crash.prove_by_event(stage, recipients=50)

    figures.check()
    assert figures.duplicates == 0


def test_four_senders_share_a_broadcast(mariadb_server: mariadb.Server) -> None:
    with crash.scene(mariadb_server.create_database("crash_share")) as stage:
        figures = crash.share(stage, recipients=5_000, senders=4)

    figures.check()
    assert figures.duplicates == 0


def test_two_senders_share_a_broadcast_on_sqlite(tmp_path: Path) -> None:
    with crash.scene(f"sqlite:///{tmp_path}/share.db") as stage:
        figures = crash.share(stage, recipients=1_000, senders=2)

    figures.check()
    assert figures.duplicates == 0


def test_whoever_opts_out_or_bounces_in_mid_send_is_skipped(mariadb_server: mariadb.Server) -> None:
    with crash.scene(mariadb_server.create_database("crash_skip")) as stage:
        crash.opt_out(stage, recipients=300).check()


def test_a_ledger_is_filled_once_though_its_sender_is_killed(mariadb_server: mariadb.Server) -> None:
    with crash.scene(mariadb_server.create_database("crash_fill")) as stage:
        slowest = crash.fill(stage, recipients=30_000, kills=2)

    assert 0 < slowest["transaction"] < 10
    assert slowest["registration"] > 0


def test_the_longest_transaction_of_a_fill_is_that_of_its_slowest_commit(
    mariadb_server: mariadb.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ledger, "REGISTRATIONS_AT_ONCE", 5)
    fill = sender_process.timed(ledger.fill, sender_process.Calls(str(tmp_path / "calls")))
    with crash.scene(mariadb_server.create_database("crash_timed")) as stage:
        stage.register(15)
        broadcast_id = stage.start()
        outside = []
        for seconds in (0.1, 0.5, 0.0):
            begun = time.monotonic()
            with stage.sessions.begin() as session:
                assert fill(session, broadcast_id)
                time.sleep(seconds)
            outside.append(time.monotonic() - begun)

    assert 0.5 <= sender_process.longest_fill(tmp_path / "calls") <= max(outside)
