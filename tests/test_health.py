"""Whether the process is up, and whether it can work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from alembic.script import ScriptDirectory
from flask import Flask
from flask.testing import FlaskClient
from flask_migrate import upgrade
from werkzeug.test import TestResponse

from registration import MIGRATIONS, services

from . import mariadb
from .test_migrations import without_the_last


def assert_not_ready(response: TestResponse) -> None:
    assert response.status_code == 503
    assert response.content_type == "application/problem+json"
    assert int(response.headers["Retry-After"]) > 0


def test_a_process_with_a_database_is_up_and_ready(client: FlaskClient) -> None:
    health, ready = client.get("/health"), client.get("/ready")

    assert (health.status_code, health.json) == (200, {"status": "up"})
    assert (ready.status_code, ready.json) == (200, {"status": "ready"})


def test_a_process_is_not_ready_for_a_database_without_tables_until_it_is_migrated(
    make_application: Callable[[str], Flask], tmp_path: Path
) -> None:
    application = make_application(f"sqlite:///{tmp_path}/empty.db")
    client = application.test_client()
    assert_not_ready(client.get("/ready"))
    assert "migrations" in client.get("/ready").json["detail"]

    with application.app_context():
        upgrade()

    assert client.get("/ready").status_code == 200


def test_a_process_is_not_ready_for_a_schema_older_than_its_own(
    application: Flask, client: FlaskClient, tmp_path: Path
) -> None:
    migrations = Path(shutil.copytree(MIGRATIONS, tmp_path / "migrations"))
    (last,) = ScriptDirectory(str(MIGRATIONS)).get_heads()
    (migrations / "versions" / "next.py").write_text(f'revision, down_revision = "next", "{last}"\n')
    services.of(application).migrations = ScriptDirectory(str(migrations))

    assert_not_ready(client.get("/ready"))
    assert client.get("/health").status_code == 200


def test_a_process_is_ready_for_a_schema_newer_than_its_own(
    application: Flask, client: FlaskClient, tmp_path: Path
) -> None:
    services.of(application).migrations = ScriptDirectory(str(without_the_last(tmp_path)))

    assert client.get("/ready").status_code == 200


def test_a_process_without_its_database_is_up_but_not_ready(make_application: Callable[[str], Flask]) -> None:
    client = make_application(f"mysql://root@127.0.0.1:{mariadb.free_port()}/registration").test_client()

    assert client.get("/health").status_code == 200
    assert_not_ready(client.get("/ready"))
