"""Who may call what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_migrate import upgrade

from registration.web import access

from .conftest import PIN, empty


@access.public
def open_view() -> str:
    """Stand for a view that is open to everybody."""
    return "welcome"


@access.secret_pin
def guarded_view(name: str) -> str:
    """Stand for a view that needs the pin."""
    return f"welcome, {name}"


@pytest.fixture
def build(
    settings: dict[str, str], make_application: Callable[[str], Flask], sqlite_url: str
) -> Iterator[Callable[..., FlaskClient]]:
    """Build an application with two views and a pin, on an empty database that counts the wrong ones."""

    def build(pin: str = PIN) -> FlaskClient:
        settings["SECRET_PIN"] = pin
        application = make_application(sqlite_url)
        with application.app_context():
            upgrade()
            empty()
        application.add_url_rule("/open", view_func=open_view)
        application.add_url_rule("/guarded/<name>", view_func=guarded_view, methods=["GET", "POST"])
        return application.test_client()

    return build


def test_what_is_public_needs_no_pin(build: Callable[..., FlaskClient]) -> None:
    assert build().get("/open").text == "welcome"


def test_a_view_says_who_may_call_it() -> None:
    assert access.decision(open_view) == "public"
    assert access.decision(guarded_view) == "secret pin"
    assert access.decision(build) is None


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_pin_as_bearer_token_lets_in(build: Callable[..., FlaskClient], scheme: str, method: str) -> None:
    response = build().open("/guarded/ann", method=method, headers={"Authorization": f"{scheme} {PIN}"})

    assert (response.status_code, response.text) == (200, "welcome, ann")


def test_blanks_before_the_pin_are_no_part_of_it(build: Callable[..., FlaskClient]) -> None:
    """RFC 9110 section 11.4 lets a client write several."""
    assert build().get("/guarded/ann", headers={"Authorization": f"Bearer  {PIN}"}).status_code == 200


@pytest.mark.parametrize(
    "pin", ["correct=horse, battery=staple", "abcdefgh==", '"quoted pin"', "pin&pin%41+pin", "d\u00e9j\u00e0 vu \u2603"]
)
def test_a_pin_may_hold_any_character(build: Callable[..., FlaskClient], pin: str) -> None:
    client = build(pin)
    as_wsgi_has_it = pin.encode().decode("latin-1")

    assert client.get("/guarded/ann", headers={"Authorization": f"Bearer {as_wsgi_has_it}"}).status_code == 200
    assert client.post("/guarded/ann", data={"secretPin": pin}).status_code == 200
    assert client.post("/guarded/ann", data={"secretPin": f" {pin}\n"}).status_code == 200
    assert client.post("/guarded/ann", json={"secretPin": pin}).status_code == 200


@pytest.mark.parametrize(
    "arguments",
    [
        {"data": {"secretPin": PIN}},
        {"data": {"secretPin": PIN}, "content_type": "multipart/form-data"},
        {"json": {"secretPin": PIN}},
        {"query_string": {"secretPin": PIN}},
    ],
)
def test_a_post_may_carry_the_pin_as_a_field(build: Callable[..., FlaskClient], arguments: dict[str, Any]) -> None:
    assert build().post("/guarded/ann", **arguments).status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_only_reads_does_not_take_the_pin_from_the_query_string(
    build: Callable[..., FlaskClient], method: str
) -> None:
    response = build().open("/guarded/ann", method=method, query_string={"secretPin": PIN})

    assert response.status_code == 401


def test_an_empty_token_hides_no_pin_in_the_body(build: Callable[..., FlaskClient]) -> None:
    for token in ("", " "):
        headers = {"Authorization": f"Bearer {token}"}
        assert build().post("/guarded/ann", headers=headers, data={"secretPin": PIN}).status_code == 200


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("GET", {}),
        ("GET", {"data": {"secretPin": PIN}}),
        ("POST", {"data": {"secretpin": PIN}}),
        ("POST", {"headers": {"Authorization": "Bearer "}}),
    ],
)
def test_no_pin_at_all_is_told_from_a_wrong_one_and_not_counted(
    build: Callable[..., FlaskClient], method: str, arguments: dict[str, Any]
) -> None:
    client = build()
    for _ in range(20):
        response = client.open("/guarded/ann", method=method, **arguments)
        assert (response.status_code, response.json["title"]) == (401, "InvalidSecretPinException")
        assert response.json["detail"].startswith("There is no secret pin in this request.")

    assert client.get("/guarded/ann", headers={"Authorization": f"Bearer {PIN}"}).status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {PIN}x",
        f"Bearer {PIN[:-1]}",
        "Bearer \xff",
        f"Basic {PIN}",
        PIN,
    ],
)
def test_anything_but_the_pin_is_answered_401(build: Callable[..., FlaskClient], authorization: str) -> None:
    for method in ("GET", "POST"):
        response = build().open("/guarded/ann", method=method, headers={"Authorization": authorization})

        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert response.json["title"] == "InvalidSecretPinException"
        assert PIN not in response.text


def test_a_wrong_bearer_token_is_not_saved_by_a_right_field(build: Callable[..., FlaskClient]) -> None:
    response = build().post("/guarded/ann", data={"secretPin": PIN}, headers={"Authorization": "Bearer wrong"})

    assert response.status_code == 401
