"""schema.sql, the migrations and the models describe the same database."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from flask import Flask
from flask_migrate import downgrade, upgrade
from sqlalchemy import inspect, text

from registration import MIGRATIONS, ROOT
from registration.db import Base, db

from . import mariadb

SCHEMA = (ROOT / "schema.sql").read_text()
REVISIONS = [script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()]


def definitions(application: Flask) -> dict[str, str]:
    """Return what the server says of each table, and the rows that a new database begins with."""
    with application.app_context(), db.engine.connect() as connection:
        tables = sorted(inspect(connection).get_table_names())
        found = {name: connection.execute(text(f"SHOW CREATE TABLE {name}")).one()[1] for name in tables}
        for name in ("pace", "registration_count", "alembic_version"):
            if name in found:
                found[f"rows of {name}"] = str(connection.execute(text(f"SELECT * FROM {name}")).all())
    found["alembic_version"] = found.get("alembic_version", "").partition(" ENGINE")[0]
    return {name: without_chance(definition) for name, definition in found.items()}


def without_chance(definition: str) -> str:
    """Return a definition without what depends on its history: the next id, and the order of the indexes."""
    lines = re.sub(r" AUTO_INCREMENT=\d+", "", definition).replace(",\n", "\n").split("\n")
    return "\n".join(sorted(lines, key=lambda line: line if line.startswith("  KEY") else ""))


def load(server: mariadb.Server, sql: str, *database: str) -> None:
    subprocess.run(
        ["mariadb", "--no-defaults", f"--socket={server.socket}", "--user=root", *database],
        input=sql.encode(),
        check=True,
        capture_output=True,
    )


@pytest.fixture
def migrated(mariadb_server: mariadb.Server, make_application: Callable[[str], Flask]) -> Flask:
    application = make_application(mariadb_server.create_database("migrated"))
    with application.app_context():
        upgrade()
    return application


def test_schema_sql_makes_what_the_migrations_make(
    mariadb_server: mariadb.Server, migrated: Flask, make_application: Callable[[str], Flask]
) -> None:
    url = mariadb_server.create_database("from_schema")
    with_schema, without_first_line = SCHEMA, SCHEMA.partition("\n")[2]
    assert with_schema.startswith("CREATE SCHEMA")

    load(mariadb_server, without_first_line, "from_schema")
    load(mariadb_server, with_schema)

    expected = definitions(migrated)
    assert definitions(make_application(url)) == expected
    assert definitions(make_application(mariadb_server.url("registration"))) == expected


def test_the_models_make_what_the_migrations_make(
    mariadb_server: mariadb.Server, migrated: Flask, make_application: Callable[[str], Flask]
) -> None:
    application = make_application(mariadb_server.create_database("from_models"))
    with application.app_context():
        Base.metadata.create_all(db.engine)

    expected = {name: definition for name, definition in definitions(migrated).items() if "CREATE TABLE" in definition}
    del expected["alembic_version"]
    found = {name: definition for name, definition in definitions(application).items() if "CREATE" in definition}
    assert found == expected


def test_a_migrated_database_has_nothing_left_to_migrate(application: Flask) -> None:
    with application.app_context(), db.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_earlier_revision_can_be_upgraded(
    mariadb_server: mariadb.Server, migrated: Flask, make_application: Callable[[str], Flask], revision: str
) -> None:
    application = make_application(mariadb_server.create_database("upgraded"))
    with application.app_context():
        upgrade(revision=revision)
        upgrade()

    assert definitions(application) == definitions(migrated)


def test_migrations_can_be_taken_back(migrated: Flask) -> None:
    with migrated.app_context():
        downgrade(revision="base")

    assert [name for name in definitions(migrated) if "CREATE" in definitions(migrated)[name]] == ["alembic_version"]


def test_schema_sql_is_marked_as_the_newest_revision() -> None:
    assert f"VALUES ('{REVISIONS[0]}')" in SCHEMA


def test_migrations_are_numbered_in_order() -> None:
    names = sorted(path.name for path in Path(MIGRATIONS / "versions").glob("*.py"))
    assert [name[:4] for name in names] == sorted(REVISIONS)
