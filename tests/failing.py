"""Functions that fail at first, to see what becomes of the work around them."""

from __future__ import annotations

from typing import Any

import pymysql
import pytest
from pymysql.constants.ER import LOCK_DEADLOCK
from sqlalchemy.exc import OperationalError


def deadlock() -> OperationalError:
    """Return the error of a transaction that had to give way to another."""
    return OperationalError("", {}, pymysql.err.OperationalError(LOCK_DEADLOCK, "Deadlock found"))


def at_first(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *errors: Exception) -> list[Exception]:
    """Let the first calls of a function do their work and raise these errors then; return those that are left."""
    function, left = getattr(owner, name), list(errors)

    def fail(*arguments: Any, **named: Any) -> Any:
        done = function(*arguments, **named)
        if left:
            raise left.pop(0)
        return done

    monkeypatch.setattr(owner, name, fail)
    return left
