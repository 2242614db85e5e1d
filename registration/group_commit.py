"""Group commit: what several threads write at the same moment goes to the database together.

The round trips and the flush of the database's log are most of what a small transaction costs, and they cost the same
for one row as for ten. Those that come while one is under way share the next; and as long as they do not come alone,
each is held back for a moment, as PostgreSQL does with commit_delay and commit_siblings
(https://www.postgresql.org/docs/current/wal-configuration.html). What comes alone does not wait, nor do those that are
as many as can come.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")

PAUSE_SECONDS = 0.002
"""What a write waits for more items, at most: about as long as a thread needs to bring one on a busy machine."""

COMPANY_SECONDS = 0.1
"""How long after items that came together the next are expected to."""


class _Entry(Generic[Item]):
    """An item on its way; its thread goes on when it has its turn: to lead, or because the item is done."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.is_done = False
        self.error: BaseException | None = None
        self.turn = threading.Lock()
        self.turn.acquire()


class GroupCommit(Generic[Item]):
    """Commits items through `write`, which takes several and returns what went wrong with each: None where nothing did.

    What `write` raises went wrong with all of them. `most` is how many threads bring items, at most.
    """

    def __init__(self, write: Callable[[Sequence[Item]], Sequence[BaseException | None]], *, most: int) -> None:
        self._write = write
        self._most = most
        self._guard = threading.Lock()
        self._waiting: list[_Entry[Item]] = []
        self._has_leader = False
        self._all_are_here = threading.Event()
        self._company_until = 0.0

    def commit(self, item: Item) -> None:
        """Commit an item, together with those of other threads; return when it is done, or raise what went wrong."""
        entry = _Entry(item)
        with self._guard:
            self._waiting.append(entry)
            if len(self._waiting) >= self._most:
                self._all_are_here.set()
            must_wait, self._has_leader = self._has_leader, True
        if must_wait:
            entry.turn.acquire()
        if not entry.is_done:
            self._lead()
        if entry.error is not None:
            raise entry.error

    def _lead(self) -> None:
        """Commit all that waits, and give the lead to the first of those that came meanwhile."""
        if time.monotonic() < self._company_until:
            self._all_are_here.wait(PAUSE_SECONDS)
        with self._guard:
            self._all_are_here.clear()
            group, self._waiting = self._waiting, []
        errors = self._write_all([entry.item for entry in group])
        self._company_until = time.monotonic() + COMPANY_SECONDS if len(group) > 1 else 0.0
        for entry, error in zip(group, errors, strict=True):
            entry.is_done, entry.error = True, error
        with self._guard:
            following = self._waiting[:1]
            self._has_leader = bool(following)
        for entry in (*following, *group):
            entry.turn.release()

    def _write_all(self, items: Sequence[Item]) -> Sequence[BaseException | None]:
        try:
            return [error for _, error in zip(items, self._write(items), strict=True)]
        except BaseException as error:  # noqa: BLE001  whatever it is, it is raised where each item came from
            return [error] * len(items)
