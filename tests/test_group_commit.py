"""Items of several threads written together, and an error where it belongs."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from registration.group_commit import GroupCommit

from .waiting import until


class Table:
    """Stands in for a table: refuses `wrong` values, and holds back its first statement until it is let go."""

    def __init__(self, wrong: Sequence[int] = (), *, is_away: bool = False) -> None:
        self.wrong, self.is_away = wrong, is_away
        self.statements: list[list[int]] = []
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def insert(self, values: Sequence[int]) -> list[ValueError | None]:
        self.statements.append(list(values))
        self.has_begun.set()
        assert self.may_end.wait(60)
        if self.is_away:
            raise ConnectionError
        return [ValueError(value) if value in self.wrong else None for value in values]


def await_waiting(group: GroupCommit[int], number: int) -> None:
    until(lambda: len(group._waiting) >= number)


def insert_together(
    table: Table, values: Sequence[int], *, most: int = 10
) -> tuple[GroupCommit[int], dict[int, Exception | None]]:
    """Insert the first value, the others while its statement is under way; return the group and what each got."""
    group, outcomes = GroupCommit(table.insert, most=most), dict[int, Exception | None]()

    def insert(value: int) -> None:
        try:
            group.commit(value)
            outcomes[value] = None
        except (ValueError, ConnectionError) as error:
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


def test_what_comes_while_a_statement_is_under_way_shares_the_next() -> None:
    table = Table()

    _, outcomes = insert_together(table, [1, 2, 3, 4])

    assert outcomes == {1: None, 2: None, 3: None, 4: None}
    first, second = table.statements
    assert (first, sorted(second)) == ([1], [2, 3, 4])


def test_after_what_had_company_the_next_is_held_back_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registration.group_commit.COMPANY_SECONDS", 60)
    table = Table()
    group, _ = insert_together(table, [1, 2, 3])
    companion = threading.Thread(target=group.commit, args=(5,))

    def pause(_: float) -> None:
        companion.start()
        await_waiting(group, 2)

    monkeypatch.setattr(group._all_are_here, "wait", pause)
    group.commit(4)
    companion.join()

    assert table.statements[2:] == [[4, 5]]


def test_what_comes_long_after_such_company_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registration.group_commit.COMPANY_SECONDS", 0)
    table = Table()
    group, _ = insert_together(table, [1, 2, 3])
    monkeypatch.setattr(group._all_are_here, "wait", lambda _: pytest.fail("It waited."))

    group.commit(4)

    assert table.statements[2:] == [[4]]


def test_when_all_are_here_that_can_come_nobody_waits_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registration.group_commit.COMPANY_SECONDS", 60)
    monkeypatch.setattr("registration.group_commit.PAUSE_SECONDS", 3600)
    table = Table()
    group, _ = insert_together(table, [1, 2, 3], most=3)

    for number, values in enumerate(([4, 5, 6], [7, 8, 9]), 3):
        for value in values:
            threading.Thread(target=group.commit, args=(value,), daemon=True).start()
        until(lambda number=number: len(table.statements) == number)

    assert [sorted(statement) for statement in table.statements[2:]] == [[4, 5, 6], [7, 8, 9]]


def test_what_is_refused_costs_its_company_nothing() -> None:
    table = Table(wrong=[3])

    _, outcomes = insert_together(table, [1, 2, 3, 4])

    assert isinstance(outcomes.pop(3), ValueError)
    assert outcomes == {1: None, 2: None, 4: None}


def test_what_is_raised_went_wrong_with_all_of_them() -> None:
    table = Table(is_away=True)

    _, outcomes = insert_together(table, [1, 2, 3])

    assert all(isinstance(outcome, ConnectionError) for outcome in outcomes.values())
    assert len(table.statements) == 2


def test_a_wrong_number_of_results_is_an_error_of_all_and_hangs_nobody() -> None:
    group: GroupCommit[int] = GroupCommit(lambda _: [], most=10)

    for _ in range(2):
        with pytest.raises(ValueError, match="shorter"):
            group.commit(1)


def test_what_comes_one_after_another_does_not_wait_for_more() -> None:
    table = Table()
    table.may_end.set()
    group = GroupCommit(table.insert, most=10)

    for value in (1, 2, 3):
        group.commit(value)

    assert table.statements == [[1], [2], [3]]
