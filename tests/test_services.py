"""What an application has is its own, and what is costly is made when it is first needed."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import Mock

import pytest
from flask import Flask

import registration
from registration import services


@pytest.mark.parametrize(("name", "maker"), [("mailer", "_create_mailer"), ("sender_engine", "_create_sender_engine")])
def test_what_is_costly_is_made_once_and_not_before_it_is_asked_for(
    sqlite_url: str,
    make_application: Callable[[str], Flask],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    maker: str,
) -> None:
    made = Mock(wraps=getattr(registration, maker))
    monkeypatch.setattr(registration, maker, made)
    get = getattr(services.of(make_application(sqlite_url)), name)
    assert made.call_count == 0

    assert get() is get()

    assert made.call_count == 1


def test_two_applications_share_nothing(make_application: Callable[[str], Flask], sqlite_url: str) -> None:
    one, other = make_application(sqlite_url), make_application(sqlite_url)

    with one.app_context():
        assert services.current() is services.of(one)
    assert services.of(one).limits is not services.of(other).limits
    assert services.of(one).mailer() is not services.of(other).mailer()
