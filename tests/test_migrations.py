"""schema.sql, the migrations and the models describe the same database."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from flask import Flask
from flask_migrate import downgrade, upgrade
from sqlalchemy import Connection, MetaData, Table, insert, inspect, select, text
from sqlalchemy.exc import OperationalError

from registration import MIGRATIONS, ROOT
from registration.db import STATEMENT_SECONDS, Base, db

from . import mariadb

SCHEMA = (ROOT / "schema.sql").read_text()
REVISIONS = [script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()]
THEN = datetime(2026, 11, 23, 12)  # noqa: DTZ001  as a database keeps it
ROWS: dict[str, dict[str, Any]] = {
    "registration": {
        "id": 1,
        "product_id": bytes(range(16)),
        "email": "Ann@example.org",
        "email_key": "ann@example.org",
        "status": "active",
        "created_at": THEN,
    },
    "installation": {
        "id": 2,
        "registration_id": 1,
        "version": "7.0.3 (1)",
        "distribution": "docker",
        "first_seen_at": THEN,
        "last_seen_at": THEN,
    },
    "broadcast": {
        "id": 3,
        "title": "Update now",
        "contents": "There is a hole.",
        "status": "sent",
        "recipients": 1,
        "audience_end": 1,
        "filled_to": 1,
        "urgent": True,
        "include_unknown": True,
        "created_at": THEN,
    },
    "delivery": {"id": 4, "broadcast_id": 3, "registration_id": 1, "status": "sent", "attempts": 1},
}
"""A row in each table that others refer to or that refers to one, before the others could be known."""


def definitions(application: Flask) -> dict[str, str]:
    """Return what the server says of each table, and the rows that a new database begins with.

    Of Alembic's own table without the collation, which is the database's.
    """
    with application.app_context(), db.engine.connect() as connection:
        tables = sorted(inspect(connection).get_table_names())
        found = {name: connection.execute(text(f"SHOW CREATE TABLE {name}")).one()[1] for name in tables}
        for name in ("pace", "registration_count", "alembic_version"):
            if name in found:
                found[f"rows of {name}"] = str(connection.execute(text(f"SELECT * FROM {name}")).all())
    alembic_version = found.get("alembic_version", "").partition(" ENGINE")[0]
    found["alembic_version"] = re.sub(r" COLLATE \w+", "", alembic_version)
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


@pytest.fixture(params=["sqlite", "mariadb"])
def unmigrated(request: pytest.FixtureRequest, make_application: Callable[[str], Flask], tmp_path: Path) -> Flask:
    """An application on a database without tables."""
    if request.param == "sqlite":
        return make_application(f"sqlite:///{tmp_path}/unmigrated.db")
    return make_application(request.getfixturevalue("mariadb_server").create_database("unmigrated"))


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


@pytest.mark.parametrize("revision", REVISIONS[1:])
def test_every_earlier_revision_becomes_the_same_on_mysql(
    mariadb_server: mariadb.Server, migrated: Flask, make_application: Callable[[str], Flask], revision: str
) -> None:
    application = make_application(mariadb_server.create_database("upgraded"))
    with application.app_context():
        upgrade(revision=revision)
        upgrade()

    assert definitions(application) == definitions(migrated)


@pytest.mark.parametrize("revision", REVISIONS[1:])
def test_every_earlier_revision_can_be_upgraded_with_what_is_in_it(unmigrated: Flask, revision: str) -> None:
    with unmigrated.app_context():
        upgrade(revision=revision)
        with db.engine.begin() as connection:
            stored = {name: store(connection, name, row) for name, row in ROWS.items()}

        upgrade()

        with db.engine.connect() as connection:
            for name, row in stored.items():
                assert row.items() <= the_row(connection, name).items()
            assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
            if connection.dialect.name == "sqlite":
                assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []


def store(connection: Connection, name: str, row: dict[str, Any]) -> dict[str, Any]:
    """Store a row in a table as it is at this revision; return it without what the table does not have yet."""
    table = Table(name, MetaData(), autoload_with=connection)
    row = {column: value for column, value in row.items() if column in table.columns}
    connection.execute(insert(table).values(row))
    return row


def the_row(connection: Connection, name: str) -> dict[str, Any]:
    """Return the only row of a table."""
    return dict(connection.execute(select(Table(name, MetaData(), autoload_with=connection))).mappings().one())


def test_a_migration_that_fails_on_sqlite_leaves_nothing(
    make_application: Callable[[str], Flask], tmp_path: Path
) -> None:
    tables = "SELECT name, sql FROM sqlite_master ORDER BY name"
    application = make_application(f"sqlite:///{tmp_path}/failed.db")
    with application.app_context():
        upgrade(revision="0001")
        with db.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE wrong_pin (in_the_way INTEGER)")
            before = connection.exec_driver_sql(tables).all()

        with pytest.raises(OperationalError, match="wrong_pin already exists"):
            upgrade()

        with db.engine.begin() as connection:
            assert connection.exec_driver_sql(tables).all() == before
            connection.exec_driver_sql("DROP TABLE wrong_pin")
        upgrade()


def test_a_migration_does_not_wait_long_for_somebody_who_has_a_table_open(
    mariadb_server: mariadb.Server, make_application: Callable[[str], Flask]
) -> None:
    """Everybody else would wait behind it."""
    application = make_application(mariadb_server.create_database("held"))
    with application.app_context():
        upgrade(revision="0001")
        with db.engine.connect() as reader:
            reader.execute(text("SELECT 1 FROM registration, installation, broadcast, delivery")).all()
            begun = time.monotonic()
            with pytest.raises(OperationalError, match="Lock wait timeout exceeded"):
                upgrade()

    assert time.monotonic() - begun < STATEMENT_SECONDS


def without_the_last(folder: Path) -> Path:
    """Return a copy of the migrations as the version before the last of them had it."""
    migrations = Path(shutil.copytree(MIGRATIONS, folder / "migrations"))
    (last,) = (migrations / "versions").glob(f"{REVISIONS[0]}_*.py")
    last.unlink()
    return migrations


def test_a_version_to_which_somebody_goes_back_leaves_the_newer_schema(unmigrated: Flask, tmp_path: Path) -> None:
    with unmigrated.app_context():
        upgrade()

        upgrade(directory=str(without_the_last(tmp_path)))

        with db.engine.connect() as connection:
            assert MigrationContext.configure(connection).get_current_heads() == (REVISIONS[0],)
            assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


@pytest.mark.parametrize("revision", [revision for revision in REVISIONS if revision > "0003"])
def test_the_version_before_a_migration_can_still_insert(unmigrated: Flask, revision: str) -> None:
    """It serves until the new one has taken over, and perhaps again. The first three migrations broke that."""
    with unmigrated.app_context():
        assert new_and_needed(MIGRATIONS, revision) == set()


def test_a_column_that_the_version_before_does_not_know_and_cannot_leave_out_is_found(
    unmigrated: Flask, tmp_path: Path
) -> None:
    migrations = Path(shutil.copytree(MIGRATIONS, tmp_path / "migrations"))
    (migrations / "versions" / "next.py").write_text(NEXT)

    with unmigrated.app_context():
        assert new_and_needed(migrations, "next") == {("installation", "needed")}


NEXT = f"""
import sqlalchemy as sa
from alembic import op

revision, down_revision = "next", "{REVISIONS[0]}"

def upgrade():
    with op.batch_alter_table("installation", recreate="auto") as table:
        table.add_column(sa.Column("needed", sa.Integer(), nullable=False))
        table.add_column(sa.Column("filled", sa.Integer(), nullable=False, server_default="7"))
        table.add_column(sa.Column("empty", sa.Integer()))
"""


def new_and_needed(migrations: Path, revision: str) -> set[tuple[str, str]]:
    """Return tables and columns that a revision adds and that an INSERT without them would fail for.

    Nobody inserts into the tables of one row.
    """

    def columns() -> dict[str, list[Any]]:
        tables = set(inspect(db.engine).get_table_names()) - {"pace", "registration_count"}
        return {table: inspect(db.engine).get_columns(table) for table in tables}

    upgrade(directory=str(migrations), revision=f"{revision}-1")
    known = {(table, column["name"]) for table, found in columns().items() for column in found}
    before = {table for table, _ in known}
    upgrade(directory=str(migrations), revision=revision)
    return {
        (table, column["name"])
        for table, found in columns().items()
        for column in found
        if table in before and not column["nullable"] and column["default"] is None
    } - known


def test_migrations_can_be_taken_back(migrated: Flask) -> None:
    with migrated.app_context():
        downgrade(revision="base")

    assert [name for name in definitions(migrated) if "CREATE" in definitions(migrated)[name]] == ["alembic_version"]


def test_schema_sql_is_marked_as_the_newest_revision() -> None:
    assert f"VALUES ('{REVISIONS[0]}')" in SCHEMA


def test_migrations_are_numbered_in_order() -> None:
    names = sorted(path.name for path in Path(MIGRATIONS / "versions").glob("*.py"))
    assert [name[:4] for name in names] == sorted(REVISIONS)
