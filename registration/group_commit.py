"""Group commit: rows that several threads insert at the same moment go to the database in one statement.

The round trip and the flush of the database's log are most of what a registration costs, and they cost the same for
one row as for ten. Those that come while a statement is under way share the next one; and as long as rows do not come
alone, each statement is held back for a moment, as PostgreSQL does with commit_delay and commit_siblings
(https://www.postgresql.org/docs/current/wal-configuration.html). A row that comes alone does not wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy.exc import DBAPIError

Row = dict[str, Any]
Insert = Callable[[Sequence[Row]], None]

PAUSE_SECONDS = 0.002
"""What a statement waits for more rows: about as long as a thread needs to bring one on a busy machine."""

COMPANY_SECONDS = 0.1
"""How long after rows that came together the next are expected to."""


class _Entry:
    """A row on its way; its thread goes on when it has its turn: to lead, or because the row is done."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.is_done = False
        self.error: BaseException | None = None
        self.turn = threading.Lock()
        self.turn.acquire()


class GroupCommit:
    """Inserts rows through `insert`, which takes several in one statement and commits them, or raises DBAPIError."""

    def __init__(self, insert: Insert) -> None:
        self._insert = insert
        self._guard = threading.Lock()
        self._waiting: list[_Entry] = []
        self._has_leader = False
        self._company_until = 0.0

    def insert(self, row: Row) -> None:
        """Insert a row, together with those of other threads, and return when it is committed.

        Raises what the database said of this row: when it refuses several together, each is tried alone. A lost
        connection is not tried again; it fails them all.
        """
        entry = _Entry(row)
        with self._guard:
            self._waiting.append(entry)
            must_wait, self._has_leader = self._has_leader, True
        if must_wait:
            entry.turn.acquire()
        if not entry.is_done:
            self._lead()
        if entry.error is not None:
            raise entry.error

    def _lead(self) -> None:
        """Insert all rows that wait, and give the lead to the first of those that came meanwhile."""
        if time.monotonic() < self._company_until:
            time.sleep(PAUSE_SECONDS)
        with self._guard:
            group, self._waiting = self._waiting, []
        self._insert_together(group)
        self._company_until = time.monotonic() + COMPANY_SECONDS if len(group) > 1 else 0.0
        with self._guard:
            following = self._waiting[:1]
            self._has_leader = bool(following)
        for entry in (*following, *group):
            entry.turn.release()

    def _insert_together(self, group: Sequence[_Entry]) -> None:
        try:
            self._insert([entry.row for entry in group])
        except BaseException as error:  # noqa: BLE001  whatever it is, it is raised where each row came from
            is_about_a_row = isinstance(error, DBAPIError) and not error.connection_invalidated
            if len(group) > 1 and is_about_a_row:
                for entry in group:
                    self._insert_together([entry])
                return
            for entry in group:
                entry.error = error
        for entry in group:
            entry.is_done = True
