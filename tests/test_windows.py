"""Windows of registrations' ids."""

from __future__ import annotations

import pytest
from sqlalchemy import insert, select

from registration import windows
from registration.db import db
from registration.models import Registration

from . import factories

pytestmark = pytest.mark.usefixtures("in_context")


def register_with(*ids: int) -> None:
    db.session.execute(
        insert(Registration), [factories.row(f"{number}@example.org") | {"id": number} for number in ids]
    )


def test_windows_cover_every_registration_once_and_nobody_else() -> None:
    ids = [3, 4, 5, 6, 9, 11]
    register_with(*ids)

    covered = [
        db.session.execute(select(Registration.id).where(windows.contains(window)).order_by(Registration.id)).scalars()
        for window in windows.split(db.session(), 2)
    ]

    assert [one for window in covered for one in window] == ids


@pytest.mark.parametrize(
    ("ids", "part", "expected"),
    [
        ([], (), []),
        ([1], (), [(0, 1)]),
        ([3, 4, 5], (), [(2, 4), (4, 5)]),
        ([3, 5_000_000, 5_000_002], (), [(2, 4), (4_999_999, 5_000_001), (5_000_001, 5_000_002)]),
        ([3, 4, 5, 6], (5,), [(2, 4), (4, 5)]),
        ([3, 9], (2,), []),
    ],
)
def test_ids_that_nobody_has_need_no_window(
    ids: list[int], part: tuple[int, ...], expected: list[tuple[int, int]]
) -> None:
    if ids:
        register_with(*ids)

    assert list(windows.split(db.session(), 2, *part)) == expected
