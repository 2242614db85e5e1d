"""What an application has is its own, and what is costly is made when it is first needed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask

import registration
from registration import services


@pytest.fixture
def made(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been made of the costly things, in order."""
    made: list[str] = []
    for name in ("_create_mailer", "_create_sender_engine"):
        create = getattr(registration, name)
        monkeypatch.setattr(
            registration,
            name,
            lambda application, create=create, name=name: (made.append(name), create(application))[1],
        )
    return made


def test_what_is_costly_is_made_once_and_not_before_it_is_asked_for(
    made: list[str], make_application: Callable[[str], Flask], sqlite_url: str
) -> None:
    mine = services.of(make_application(sqlite_url))
    assert made == []

    assert mine.mailer() is mine.mailer()
    assert made == ["_create_mailer"]
    assert mine.sender_engine() is mine.sender_engine()
    assert made == ["_create_mailer", "_create_sender_engine"]


def test_two_applications_share_nothing(make_application: Callable[[str], Flask], sqlite_url: str) -> None:
    one, other = make_application(sqlite_url), make_application(sqlite_url)

    with one.app_context():
        assert services.current() is services.of(one)
    assert services.of(one).limits is not services.of(other).limits
    assert services.of(one).mailer() is not services.of(other).mailer()
