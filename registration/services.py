"""The services that views and commands need of their application: made once, at its start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from alembic.script import ScriptDirectory
from flask import Flask, current_app
from sqlalchemy import Engine

from .counting import ConfirmedCount
from .domains import Domains
from .limits import Limits
from .mailers import Mailer
from .registrations import Registrar
from .tokens import Tokens

_NAME = "registration"


@dataclass
class Services:
    """What one application has; `mailer` and `sender_engine` are made when they are first asked for.

    `rate_limit` is the operator's own, in recipients a second; `wake` is to be called when there is something to send.
    """

    tokens: Tokens
    registrar: Registrar
    confirmed_count: ConfirmedCount
    limits: Limits
    domains: Domains
    migrations: ScriptDirectory
    rate_limit: float
    wake: Callable[[], None]
    mailer: Callable[[], Mailer]
    sender_engine: Callable[[], Engine]

    def init_app(self, application: Flask) -> None:
        """Make them an application's own."""
        application.extensions[_NAME] = self


def of(application: Flask) -> Services:
    """Return what an application has."""
    found: Services = application.extensions[_NAME]
    return found


def current() -> Services:
    """Return what the current application has."""
    return of(current_app)
