"""Rows of several threads in one statement, and an error where it belongs."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from registration.group_commit import GroupCommit, Row


class Table:
    """Stands in for a table: refuses `wrong` values, and holds back its first statement until it is let go."""

    def __init__(self, wrong: Sequence[int] = (), *, is_away: bool = False) -> None:
        self.wrong, self.is_away = wrong, is_away
        self.statements: list[list[int]] = []
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def insert(self, rows: Sequence[Row]) -> None:
        values = [row["value"] for row in rows]
        self.statements.append(values)
        self.has_begun.set()
        assert self.may_end.wait(10)
        if self.is_away:
            raise OperationalError("INSERT", {}, Exception("gone"), connection_invalidated=True)
        if set(values) & set(self.wrong):
            raise IntegrityError("INSERT", {}, Exception("known"))


def await_waiting(group: GroupCommit, number: int) -> None:
    while len(group._waiting) < number:
        pass


def insert_together(table: Table, values: Sequence[int]) -> tuple[GroupCommit, dict[int, Exception | None]]:
    """Insert the first value, the others while its statement is under way; return the group and what each got."""
    group, outcomes = GroupCommit(table.insert), dict[int, Exception | None]()

    def insert(value: int) -> None:
        try:
            group.insert({"value": value})
            outcomes[value] = None
        except (IntegrityError, OperationalError) as error:
            outcomes[value] = error

    threads = [threading.Thread(target=insert, args=(value,)) for value in values]
    threads[0].start()
    assert table.has_begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    await_waiting(group, len(values) - 1)
    table.may_end.set()
    for thread in threads:
        thread.join()
    return group, outcomes


def test_rows_that_come_while_a_statement_is_under_way_share_the_next() -> None:
    table = Table()

    _, outcomes = insert_together(table, [1, 2, 3, 4])

    assert outcomes == {1: None, 2: None, 3: None, 4: None}
    first, second = table.statements
    assert (first, sorted(second)) == ([1], [2, 3, 4])


def test_after_rows_that_had_company_the_next_is_held_back_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registration.group_commit.COMPANY_SECONDS", 60)
    table = Table()
    group, _ = insert_together(table, [1, 2, 3])
    companion = threading.Thread(target=group.insert, args=({"value": 5},))

    def pause(_: float) -> None:
        companion.start()
        await_waiting(group, 2)

    monkeypatch.setattr("registration.group_commit.time.sleep", pause)
    group.insert({"value": 4})
    companion.join()

    assert table.statements[2:] == [[4, 5]]


def test_a_row_that_comes_long_after_such_company_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registration.group_commit.COMPANY_SECONDS", 0)
    monkeypatch.setattr("registration.group_commit.time.sleep", lambda _: pytest.fail("It waited."))
    table = Table()
    group, _ = insert_together(table, [1, 2, 3])

    group.insert({"value": 4})

    assert table.statements[2:] == [[4]]


def test_a_row_that_is_refused_costs_its_company_nothing() -> None:
    table = Table(wrong=[3])

    _, outcomes = insert_together(table, [1, 2, 3, 4])

    assert isinstance(outcomes.pop(3), IntegrityError)
    assert outcomes == {1: None, 2: None, 4: None}


def test_a_lost_connection_fails_them_all_at_once() -> None:
    table = Table(is_away=True)

    _, outcomes = insert_together(table, [1, 2, 3])

    assert all(isinstance(outcome, OperationalError) for outcome in outcomes.values())
    assert len(table.statements) == 2


def test_rows_one_after_another_do_not_wait_for_each_other() -> None:
    table = Table()
    table.may_end.set()
    group = GroupCommit(table.insert)

    for value in (1, 2, 3):
        group.insert({"value": value})

    assert table.statements == [[1], [2], [3]]
