"""Group commit: rows that several threads insert at the same moment go to the database in one statement.

The round trip and the flush of the database's log are most of what a registration costs, and they cost the same for
one row as for ten. No row waits for others: those that come while a statement is under way share the next one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import DBAPIError

Row = dict[str, Any]
Insert = Callable[[Sequence[Row]], None]


@dataclass
class _Entry:
    """A row on its way; `error` is what the database said of it."""

    row: Row
    is_done: bool = False
    error: Exception | None = None


class GroupCommit:
    """Inserts rows through `insert`, which takes several in one statement and commits them, or raises DBAPIError."""

    def __init__(self, insert: Insert) -> None:
        self._insert = insert
        self._turn = threading.Lock()
        self._waiting: deque[_Entry] = deque()

    def insert(self, row: Row) -> None:
        """Insert a row, together with those of other threads, and return when it is committed.

        Raises what the database said of this row: when it refuses several together, each is tried alone. A lost
        connection is not tried again; it fails them all.
        """
        entry = _Entry(row)
        self._waiting.append(entry)
        with self._turn:
            if not entry.is_done:
                self._insert_together([self._waiting.popleft() for _ in range(len(self._waiting))])
        if entry.error is not None:
            raise entry.error

    def _insert_together(self, group: Sequence[_Entry]) -> None:
        try:
            self._insert([entry.row for entry in group])
        except Exception as error:  # noqa: BLE001  whatever it is, it is raised where each row came from
            is_about_a_row = isinstance(error, DBAPIError) and not error.connection_invalidated
            if len(group) > 1 and is_about_a_row:
                for entry in group:
                    self._insert_together([entry])
                return
            for entry in group:
                entry.error = error
        for entry in group:
            entry.is_done = True
