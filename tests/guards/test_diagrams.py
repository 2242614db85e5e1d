"""docs/engine.md draws what the code does."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from flask import Flask
from flask_migrate import upgrade
from sqlalchemy import select

from registration import ROOT, broadcasts, ledger, tasks
from registration.db import db
from registration.mailers import Verdict
from registration.models import Broadcast, Delivery

from .. import conftest, factories

PAGE = (ROOT / "docs" / "engine.md").read_text()
DIAGRAMS = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", PAGE, re.DOTALL)
OUTSIDE = "[*]"


def arrows(diagram: str) -> set[tuple[str, str]]:
    """Return the arrows of a diagram; every line of it must be one, with a reason."""
    lines = [line.strip() for line in diagram.splitlines()]
    found = [re.fullmatch(r"(\S+) --> (\S+?)(?:: \S.*)?", line) for line in lines]
    assert None not in found, lines[found.index(None)]
    pairs = [(match[1], match[2]) for match in found if match]
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


DELIVERY, BROADCAST = (arrows(diagram) for diagram in DIAGRAMS)


@pytest.mark.parametrize(
    ("drawn", "moves"), [(DELIVERY, ledger.MOVES), (BROADCAST, broadcasts.MOVES)], ids=["delivery", "broadcast"]
)
def test_the_moves_drawn_are_those_allowed(drawn: set[tuple[str, str]], moves: dict[str, frozenset[str]]) -> None:
    allowed = {(origin, status) for status, origins in moves.items() for origin in origins}

    assert {arrow for arrow in drawn if OUTSIDE not in arrow} == allowed


def test_the_ends_drawn_are_the_final_statuses() -> None:
    assert {origin for origin, status in DELIVERY if status == OUTSIDE} == set(ledger.FINAL)


def test_the_beginnings_drawn_are_those_that_happen(make_application: Callable[[str], Flask], sqlite_url: str) -> None:
    with make_application(sqlite_url).app_context():
        upgrade()
        conftest.empty()
        factories.start_broadcast()
        factories.register(1)
        ledger.fill(db.session(), factories.start_broadcast())
        begun = {
            model: set(db.session.execute(select(model.status)).scalars().all())  # type: ignore[attr-defined]
            for model in (Delivery, Broadcast)
        }

    assert {status for origin, status in DELIVERY if origin == OUTSIDE} == begun[Delivery]
    assert {status for origin, status in BROADCAST if origin == OUTSIDE} == begun[Broadcast]


def test_the_table_of_trouble_is_what_is_decided() -> None:
    rows = re.findall(r"^\|[^|]+\| `([A-Z]+)` \| `(\w+)`", PAGE, re.MULTILINE)

    decided = {verdict.name: ledger.AFTER[verdict] for verdict in Verdict if verdict is not Verdict.ACCEPTED}
    assert dict(rows) == decided


def test_the_times_and_numbers_are_those_of_the_code() -> None:
    for sentence in (
        f"{ledger.LEASE.total_seconds():g} seconds after the claim",
        f"every {broadcasts.HOLD.total_seconds():g} seconds",
        f"after {ledger.MOST_ATTEMPTS} attempts",
        f"{tasks.SLICE_SECONDS:g} seconds at most",
        f"asks every {tasks.SWEEP_SECONDS:g} seconds",
        f"expires after {tasks.EXPIRE_SECONDS:g} seconds",
    ):
        assert sentence in " ".join(PAGE.split())
