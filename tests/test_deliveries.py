"""Who got a broadcast and who did not, over HTTP."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from werkzeug.test import TestResponse

from registration import ledger
from registration.db import db
from registration.models import Delivery, DeliveryStatus, Feedback, Registration
from registration.web import deliveries

from .conftest import HEADERS
from .ledgers import ACCEPTED, NOW, REFUSED, claim, filled, settle

COLUMNS = ["recipient", "status", "reason", "attempts", "settledAt", "messageId", "feedback"]


def get(client: FlaskClient, broadcast_id: int, headers: dict[str, str] | None = None, **query: Any) -> TestResponse:
    path = f"/api/registration/broadcast/{broadcast_id}/deliveries"
    return client.get(path, query_string=query, headers=HEADERS | (headers or {}))


def half_sent(application: Flask, number: int = 6) -> int:
    """Return a broadcast of which half was sent, a sixth failed, and the rest is queued."""
    with application.app_context():
        broadcast_id = filled(number)
        settle(claim(broadcast_id, number * 2 // 3), *[ACCEPTED] * (number // 2), *[REFUSED] * (number // 6))
    return broadcast_id


def rows(response: TestResponse) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(response.text, newline="")))


def assert_problem(response: TestResponse, status: int, title: str) -> None:
    assert (response.status_code, response.content_type) == (status, "application/problem+json")
    assert response.json["title"] == title


def test_each_delivery_is_told_with_what_became_of_it(application: Flask, client: FlaskClient) -> None:
    broadcast_id = half_sent(application)

    told = get(client, broadcast_id).json

    assert told["next"] is None
    assert [list(one) for one in told["deliveries"]] == [COLUMNS] * 6
    assert [one["status"] for one in told["deliveries"]] == ["sent"] * 3 + ["failed"] + ["queued"] * 2
    sent, failed, queued = (told["deliveries"][number] for number in (0, 3, 4))
    settled_at = f"{NOW:%Y-%m-%dT%H:%M:%SZ}"
    assert (sent["messageId"], sent["reason"], sent["settledAt"]) == ("0100-1", None, settled_at)
    assert (failed["messageId"], failed["reason"], failed["attempts"]) == (None, "No such address.", 1)
    assert (queued["attempts"], queued["settledAt"]) == (0, None)


@pytest.mark.parametrize(("status", "number"), [("sent", 3), ("failed", 1), ("queued", 2), ("cancelled", 0)])
def test_those_with_one_status_are_told(application: Flask, client: FlaskClient, status: str, number: int) -> None:
    broadcast_id = half_sent(application)

    told = get(client, broadcast_id, status=status).json["deliveries"]

    assert [one["status"] for one in told] == [status] * number
    assert [row["status"] for row in rows(get(client, broadcast_id, status=status, format="csv"))] == [status] * number


@pytest.mark.parametrize("query", [{}, {"status": "sent"}])
def test_deliveries_are_told_a_page_at_a_time(application: Flask, client: FlaskClient, query: dict[str, str]) -> None:
    half_sent(application)
    broadcast_id = half_sent(application)
    everybody = get(client, broadcast_id, **query).json["deliveries"]

    page = get(client, broadcast_id, limit=2, **query).json
    seen = page["deliveries"]
    while page["next"]:
        assert len(page["deliveries"]) == 2
        page = client.get(page["next"], headers=HEADERS).json
        seen += page["deliveries"]

    assert seen == everybody
    assert len({one["recipient"] for one in seen}) == len(seen)


@pytest.mark.parametrize("how", [{"format": "csv"}, {"headers": {"Accept": "text/csv"}}])
def test_as_csv_everything_comes_in_one_file(
    application: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    monkeypatch.setattr(deliveries, "LARGEST_PAGE", 4)
    broadcast_id = half_sent(application, 18)

    response = get(client, broadcast_id, **how)

    assert response.status_code == 200
    assert response.content_type == "text/csv; charset=utf-8"
    assert response.headers["Content-Disposition"].startswith("attachment")
    table = rows(response)
    assert list(table[0]) == COLUMNS
    monkeypatch.undo()
    told = get(client, broadcast_id).json["deliveries"]
    assert table == [{name: "" if value is None else str(value) for name, value in one.items()} for one in told]


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/csv;q=0.5, application/json", "text/html"])
def test_json_is_what_comes_otherwise(application: Flask, client: FlaskClient, accept: str) -> None:
    assert get(client, half_sent(application), headers={"Accept": accept}).is_json
    assert get(client, half_sent(application), headers={"Accept": "text/csv"}, format="json").is_json


@pytest.mark.parametrize("start", ["=1+1", "+1", "-1", "@a", "=cmd|' /C calc'!A0"])
def test_no_cell_is_calculated_by_a_spreadsheet(application: Flask, client: FlaskClient, start: str) -> None:
    broadcast_id = half_sent(application)
    address, reason = f"{start}@example.org", f"{start}, it said."
    with application.app_context():
        first = select(Delivery.registration_id).order_by(Delivery.id).limit(1).scalar_subquery()
        db.session.execute(update(Delivery).values(reason=reason, message_id=start))
        db.session.execute(update(Registration).where(Registration.id == first).values(email=address))
        db.session.commit()

    (row, *_) = rows(get(client, broadcast_id, format="csv"))

    assert (row["recipient"], row["reason"], row["messageId"]) == (f"'{address}", f"'{reason}", f"'{start}")
    assert get(client, broadcast_id).json["deliveries"][0]["recipient"] == address


def test_a_status_that_there_is_not_is_answered_with_those_that_there_are(client: FlaskClient) -> None:
    response = get(client, 1, status="lost")

    assert_problem(response, 400, "InvalidQueryException")
    assert all(status in response.json["detail"] for status in DeliveryStatus)


@pytest.mark.parametrize(
    "query",
    [
        {"status": ""},
        {"format": "xml"},
        {"format": ""},
        {"limit": "0"},
        {"limit": "1001"},
        {"format": "csv", "limit": "5"},
        {"limit": "x"},
        {"after": "-1"},
        {"after": "9" * 30},
    ],
)
def test_a_question_that_cannot_be_answered_is_answered_400(client: FlaskClient, query: dict[str, str]) -> None:
    assert_problem(get(client, 1, **query), 400, "InvalidQueryException")


@pytest.mark.parametrize("form", ["json", "csv"])
def test_an_unknown_broadcast_is_answered_404(client: FlaskClient, form: str) -> None:
    assert_problem(get(client, 4711, format=form), 404, "UnknownBroadcastException")


def test_deliveries_are_told_with_the_pin_only(client: FlaskClient) -> None:
    assert_problem(get(client, 1, headers={"Authorization": "Bearer wrong"}), 401, "InvalidSecretPinException")


def test_a_large_file_is_read_piece_by_piece(
    application: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    broadcast_id = half_sent(application, 18)
    monkeypatch.setattr(deliveries, "LARGEST_PAGE", 4)
    asked: list[int] = []
    lines = ledger.lines
    monkeypatch.setattr(ledger, "lines", lambda *place, **page: asked.append(page["after"]) or lines(*place, **page))

    response = get(client, broadcast_id, format="csv")
    pieces = iter(response.response)
    for number in range(3):
        next(pieces)
        assert len(asked) == number
        assert connections_in_use(application) == 0
    assert sum(1 for _ in pieces) == 3
    assert connections_in_use(application) == 0


def test_a_file_that_nobody_takes_to_its_end_holds_no_connection(application: Flask, client: FlaskClient) -> None:
    response = get(client, half_sent(application), format="csv")

    next(iter(response.response))
    response.close()

    assert connections_in_use(application) == 0


def connections_in_use(application: Flask) -> int:
    with application.app_context():
        return db.engine.pool.checkedout()  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", ["json", "csv"])
def test_what_the_mail_service_told_afterwards_is_told(application: Flask, client: FlaskClient, form: str) -> None:
    broadcast_id = half_sent(application)
    with application.app_context():
        db.session.execute(update(Delivery).where(Delivery.status == "sent").values(feedback=Feedback.HARD_BOUNCE))
        db.session.commit()

    response = get(client, broadcast_id, format=form)

    told = response.json["deliveries"] if form == "json" else rows(response)
    assert [one["feedback"] or None for one in told] == ["hard_bounce"] * 3 + [None] * 3


@pytest.mark.parametrize("name", ["staus", "Status", "secretPin"])
def test_a_misspelt_parameter_gives_nobodys_address_away(application: Flask, client: FlaskClient, name: str) -> None:
    response = get(client, half_sent(application), **{name: "failed"})

    assert_problem(response, 400, "InvalidQueryException")
    assert "@" not in response.text
