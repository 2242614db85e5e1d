"""Fixtures: an application on an empty database, once on SQLite and once on MariaDB."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_migrate import upgrade
from sqlalchemy import insert
from sqlalchemy.orm import sessionmaker

import config
from registration import create_application, create_sender, services
from registration.db import Base, db
from registration.models import Pace, RegistrationCount
from registration.sender import Sender

from . import mariadb, redis_server
from .inbox import Inbox

PIN = "correct horse battery staple"
HEADERS = {"Authorization": f"Bearer {PIN}"}


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[mariadb.Server]:
    """A private MariaDB server."""
    yield from private(mariadb)


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """The URL of a private Redis server."""
    yield from private(redis_server)


@pytest.fixture(scope="session")
def mariadb_url(request: pytest.FixtureRequest) -> str:
    """A MariaDB or MySQL database to test on: TEST_DB_CONN_STR, or one of our own server; its schema is current."""
    named = os.environ.get("TEST_DB_CONN_STR", "")
    return migrated(named or request.getfixturevalue("mariadb_server").create_database("registration_test"))


@pytest.fixture(scope="session")
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An SQLite database to test on; its schema is current."""
    return migrated(f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/test.db")


@pytest.fixture(params=["sqlite", "mariadb"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Each kind of database in turn."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """The environment of the application under test; a test may change it before it asks for the application."""
    return {
        "SECRET_PIN": PIN,
        "OUTBOX_DIRECTORY": str(tmp_path / "outbox"),
        "LOG_FILE": str(tmp_path / "log"),
        "BROADCAST_WAIT_SECONDS": "0",
        "ALLOW_RESERVED_DOMAINS": "true",
        "REGISTRATIONS_PER_NETWORK": "100000",
        "REGISTRATIONS_PER_MINUTE": "100000",
    }


@pytest.fixture
def inbox(settings: dict[str, str]) -> Inbox:
    """What the application's recipients find."""
    return Inbox(Path(settings["OUTBOX_DIRECTORY"]))


@pytest.fixture
def make_application(settings: dict[str, str]) -> Iterator[Callable[[str], Flask]]:
    """Build applications whose connections are closed at the end of the test."""
    made: list[Flask] = []

    def make(url: str) -> Flask:
        made.append(create_application(config.read({**settings, "DB_CONN_STR": url}, development=True)))
        return made[-1]

    yield make
    for application in made:
        dispose(application)


@pytest.fixture
def application(make_application: Callable[[str], Flask], database_url: str) -> Flask:
    """The application on an empty database."""
    application = make_application(database_url)
    with application.app_context():
        empty()
    return application


@pytest.fixture
def in_context(application: Flask) -> Iterator[None]:
    """The application's context around a test."""
    with application.app_context():
        yield


@pytest.fixture
def client(application: Flask) -> FlaskClient:
    return application.test_client()


@pytest.fixture
def sessions(application: Flask) -> sessionmaker:
    """What makes sessions of the application's database, outside its context: in threads, and one after another."""
    with application.app_context():
        return sessionmaker(db.engine)


@pytest.fixture
def sender(application: Flask) -> Sender:
    """What sends the application's broadcasts, step by step."""
    return create_sender(application)


def private(program: Any) -> Iterator[Any]:
    """Run a private server of `mariadb` or `redis_server`. Missing, it fails in CI and is skipped elsewhere."""
    if program.is_installed():
        with program.running() as server:
            yield server
    elif os.environ.get("CI") == "true":
        pytest.fail(program.MISSING)
    else:
        pytest.skip(program.MISSING)


def migrated(url: str) -> str:
    """Bring a database to the current schema; once for many tests, because it costs more than most of them."""
    settings = {"DB_CONN_STR": url, "LOG_FILE": os.devnull}
    application = create_application(config.read(settings, development=True))
    with application.app_context():
        upgrade()
    dispose(application)
    return url


def empty() -> None:
    """Delete all rows, and begin again with those that the migrations insert."""
    with db.engine.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.exec_driver_sql(f"DELETE FROM {table.name}")
        connection.execute(insert(Pace).values(id=1, free_at=0, factor=1, throttled_at=0, asked_at=0))
        connection.execute(insert(RegistrationCount).values(id=1, up_to_id=0, registrations=0))


def dispose(application: Flask) -> None:
    with application.app_context():
        for engine in (*db.engines.values(), services.of(application).sender_engine()):
            engine.dispose()
