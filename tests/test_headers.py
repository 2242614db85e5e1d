"""What every answer tells browsers."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from registration.web.headers import HEADERS


@pytest.mark.parametrize("path", ["/health", "/api/registration/unique", "/nowhere", "/api/registration/broadcast"])
def test_every_answer_has_the_security_headers(client: FlaskClient, path: str) -> None:
    headers = client.get(path).headers

    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert "Set-Cookie" not in headers
    assert "Strict-Transport-Security" not in headers


def test_a_service_at_an_https_address_says_that_it_stays_so(client: FlaskClient) -> None:
    client.application.config["PUBLIC_URL"] = "https://notices.example.org"

    headers = client.get("/health").headers

    assert headers["Strict-Transport-Security"] == "max-age=31536000"
