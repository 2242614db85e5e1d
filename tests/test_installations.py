"""What the installations run, over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from . import factories
from .conftest import HEADERS

VERSIONS = "/api/registration/versions"


@pytest.fixture
def clinics(application: Flask) -> None:
    with application.app_context():
        emails = factories.register(3)
        for email in emails:
            factories.install(email, "7.0.3 (1)", "docker")
        for email in emails[:2]:
            factories.install(email, "7.0.3 (1)")
        factories.install(emails[0], "banana")


def get(client: FlaskClient, **query: Any) -> TestResponse:
    return client.get(VERSIONS, query_string=query, headers=HEADERS)


def row(version: str, distribution: str, registrations: int, *, known: bool = True) -> dict[str, Any]:
    return {"version": version, "distribution": distribution, "registrations": registrations, "known": known}


def test_each_version_and_distribution_is_told_with_its_registrations_most_first(
    clinics: None, client: FlaskClient
) -> None:
    assert get(client).json == {
        "versions": [row("7.0.3 (1)", "docker", 3), row("7.0.3 (1)", "", 2), row("banana", "", 1, known=False)],
        "more": False,
    }


def test_no_more_are_told_than_asked_for(clinics: None, client: FlaskClient) -> None:
    told = get(client, limit=2).json

    assert ([one["registrations"] for one in told["versions"]], told["more"]) == ([3, 2], True)
    assert get(client, limit=3).json["more"] is False


@pytest.mark.parametrize("limit", ["0", "1001", "many", ""])
def test_a_limit_out_of_bounds_is_answered_400(client: FlaskClient, limit: str) -> None:
    response = get(client, limit=limit)

    assert (response.status_code, response.json["title"]) == (400, "InvalidQueryException")


def test_versions_are_told_with_the_pin_only(client: FlaskClient) -> None:
    assert client.get(VERSIONS).status_code == 401
