"""Somebody decided for every route who may call it, and reading changes nothing."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from inspect import iscoroutinefunction
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select
from werkzeug.routing import Rule

from registration import services
from registration.db import Base, db
from registration.models import Registration, RegistrationStatus
from registration.web import access

from .. import factories
from ..conftest import HEADERS, PIN

DECISIONS = {
    "POST /api/registration": "public",
    "GET /api/registration/unique": "public",
    "GET /api/registration/versions": "secret pin",
    "POST /api/registration/broadcast": "secret pin",
    "GET /api/registration/broadcast": "secret pin",
    "GET /api/registration/broadcast/<>": "secret pin",
    "GET /api/registration/broadcast/<>/deliveries": "secret pin",
    "POST /api/registration/broadcast/<>/pause": "secret pin",
    "POST /api/registration/broadcast/<>/resume": "secret pin",
    "POST /api/registration/broadcast/<>/cancel": "secret pin",
    "POST /api/registration/broadcast/<>/retry": "secret pin",
    "GET /opt-out/<>": "public",
    "POST /opt-out/<>": "public",
    "GET /opt-out/<>/undo": "public",
    "POST /opt-out/<>/undo": "public",
    "GET /opt-out/<>/erase": "public",
    "POST /opt-out/<>/erase": "public",
    "GET /confirm/<>": "public",
    "POST /confirm/<>": "public",
    "GET /opt-out": "public",
    "POST /opt-out": "public",
    "GET /opt-out/": "public",
    "POST /opt-out/": "public",
    "GET /confirm": "public",
    "POST /confirm": "public",
    "GET /confirm/": "public",
    "POST /confirm/": "public",
    "GET /opt-out/test": "public",
    "GET /opt-out.css": "public",
    "GET /health": "public",
    "GET /ready": "public",
}
AUTOMATIC = {"HEAD", "OPTIONS"}


def calls_of(rule: Rule) -> list[str]:
    path = re.sub(r"<[^>]*>", "<>", rule.rule)
    return [f"{method} {path}" for method in sorted((rule.methods or set()) - AUTOMATIC)]


def rows() -> dict[str, list[Any]]:
    """Return everything that is in the database."""
    with db.engine.connect() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table))]
            for table in Base.metadata.sorted_tables
        }


def test_somebody_decided_for_every_route_who_may_call_it(application: Flask) -> None:
    undecided = [
        rule.rule
        for rule in application.url_map.iter_rules()
        if access.decision(application.view_functions[rule.endpoint]) is None
    ]

    assert undecided == []


def test_the_decisions_are_these(application: Flask) -> None:
    decisions = {
        call: access.decision(application.view_functions[rule.endpoint])
        for rule in application.url_map.iter_rules()
        for call in calls_of(rule)
    }

    assert decisions == DECISIONS


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_what_only_reads_changes_nothing(application: Flask, method: str) -> None:
    with application.app_context():
        factories.register(2)
        broadcast_id = factories.start_broadcast()
        links = valid_links(application)
        before = rows()
    fields = {"email": "ann@example.org", "secretPin": PIN, "title": "Update now", "contents": "There is a hole."}

    for rule in application.url_map.iter_rules():
        kind = rule.rule.split("/")[1]
        path = re.sub(r"<[^>]*token>", links.get(kind, ""), rule.rule)
        path = re.sub(r"<[^>]*>", str(broadcast_id), path)
        answer = application.test_client().open(path, method=method, query_string=fields, headers=HEADERS)
        assert answer.status_code in (200, 405) or "token" not in rule.rule

    with application.app_context():
        assert rows() == before


def valid_links(application: Flask) -> dict[str, str]:
    """Return tokens that would opt a registration out and confirm another."""
    tokens, now = services.of(application).tokens, datetime.now(UTC)
    active, waiting = db.session.execute(select(Registration).order_by(Registration.id)).scalars()
    waiting.status, waiting.confirmation_sent_at = RegistrationStatus.UNCONFIRMED, now
    links = {
        "opt-out": tokens.opt_out_url(active.product_id).rpartition("/")[2],
        "confirm": tokens.confirmation_url(waiting.product_id, now).rpartition("/")[2],
    }
    db.session.commit()
    return links


@pytest.mark.parametrize("call", [call for call, decision in DECISIONS.items() if decision == "secret pin"])
def test_nobody_gets_past_the_pin_without_it(application: Flask, call: str) -> None:
    method, path = call.replace("<>", "1").split()

    assert application.test_client().open(path, method=method).status_code == 401


def test_no_function_that_a_request_calls_is_async(application: Flask) -> None:
    hooks = [application.before_request_funcs, application.after_request_funcs, application.teardown_request_funcs]
    called = [*application.view_functions.values(), *application.teardown_appcontext_funcs]
    called += [function for by_blueprint in hooks for functions in by_blueprint.values() for function in functions]

    assert len(called) > len(application.view_functions) > 10
    assert [function for function in called if iscoroutinefunction(function)] == []
