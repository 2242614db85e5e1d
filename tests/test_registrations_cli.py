"""Moving registrations in and out, and looking after single ones, through click's runner."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError

from registration import ROOT, confirmations, consent, counting, registrations_cli, services, transfers, windows
from registration.db import AUTOCOMMIT, db
from registration.models import Installation, Registration, RegistrationStatus
from registration.tokens import ConfirmationLink

from . import factories, failing
from .conftest import empty

Run = Callable[..., Result]
PRODUCT_ID = uuid.UUID("a30ebf9e-ad64-42dc-8f20-5834c6ef63d7")


@pytest.fixture
def run(application: Flask) -> Run:
    """Run a command as `flask registrations` does."""
    runner = application.test_cli_runner()
    return lambda *arguments, **named: runner.invoke(args=["registrations", *map(str, arguments)], **named)


@pytest.fixture
def stored(application: Flask) -> Callable[[], list[tuple[Any, ...]]]:
    """Read what is stored: address, status, version of its installation."""

    def read() -> list[tuple[Any, ...]]:
        with application.app_context():
            lines = select(Registration.email, Registration.status, Installation.version)
            joined = lines.outerjoin(Installation, Installation.registration_id == Registration.id)
            return [tuple(row) for row in db.session.execute(joined.order_by(Registration.id, Installation.id))]

    return read


def table(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def test_an_import_takes_the_columns_by_name(application: Flask, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "old.csv"
    file.write_text(
        table(
            "status,IP,Email,created_at,distribution,version,product_id",
            f"opted_out,192.0.2.1,Ann@Example.org,2020-02-03T04:05:06+01:00,docker,7.0.3 (1),{PRODUCT_ID}",
        ),
        "utf-8-sig",
    )

    result = run("import", file)

    assert result.exit_code == 0, result.output
    assert "These columns are not imported: 'ip'" in result.stderr
    assert result.stdout.endswith("1 new, 0 known before, 0 refused.\n")
    with application.app_context():
        known = db.session.execute(select(Registration)).scalar_one()
        assert (known.email, known.email_key, known.product_id) == ("Ann@Example.org", "ann@example.org", PRODUCT_ID)
        assert (known.status, known.ip_address) == (RegistrationStatus.OPTED_OUT, None)
        assert known.created_at == datetime(2020, 2, 3, 3, 5, 6, tzinfo=UTC)
        installation = db.session.execute(select(Installation)).scalar_one()
        assert (installation.version, installation.distribution) == ("7.0.3 (1)", "docker")
        assert installation.version_key is not None
        assert counting.count(db.session.connection()) == 1


def test_an_import_from_standard_input_needs_nothing_but_the_address(run: Run, stored: Any) -> None:
    result = run("import", input=table("email", "ann@example.org", "", "bob@example.org"))

    assert result.exit_code == 0, result.output
    assert [row[:2] for row in stored()] == [("ann@example.org", "active"), ("bob@example.org", "active")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nobody,,,,,,", "must have an @-sign"),
        (",,,,,,", "is needed"),
        ("ann@mailinator.com,,,,,,", "throw-away"),
        ("ann@example.org,5,,,,,", "must be a UUID"),
        (f"ann@example.org,,{'7' * 65},,,,", "version is longer"),
        ("ann@example.org,,,,yesterday,,", "created_at must be a time"),
        ("ann@example.org,,,,1999-01-01,,", "before the year 2000"),
        ("ann@example.org,,,,2999-01-01,,", "in the future"),
        ("ann@example.org,,,,,,yesterday", "last_seen_at must be a time"),
        ("ann@example.org,,,,,erased,", "status must be one of"),
        ("ann@example.org,", "2 cells, not 7"),
        ("ann@example.org,,,,,,,", "8 cells, not 7"),
        (f"{'a' * 2000},,,,,,", "longer than 1,000"),
        ("\udcff@example.org,,,,,,", "not UTF-8"),
        ('"ann@example.org,,,,,,', "not CSV"),
        ('"ann@example.org"x,,,,,,', "not CSV"),
        (f'"{"a" * 200_000}",,,,,,', "longer than 65,536"),
    ],
)
def test_a_refused_line_is_reported_with_its_number_and_reason(
    run: Run, stored: Any, tmp_path: Path, line: str, reason: str
) -> None:
    file, report = tmp_path / "old.csv", tmp_path / "refused.csv"
    text = table(",".join(transfers.COLUMNS), "bob@example.org,,,,,,", line, "eve@example.org,,,,,,")
    file.write_text(text, "utf-8", errors="surrogateescape")

    result = run("import", file, "--report", report)

    assert result.exit_code == 1, result.output
    assert "2 new, 0 known before, 1 refused" in result.output
    [heading, (number, why)] = csv.reader(report.read_text().splitlines())
    assert (heading, number) == (["line", "reason"], "3")
    assert reason in why
    assert len(stored()) == 2


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_quotation_mark_that_nobody_closes_costs_its_own_line_alone(
    run: Run, stored: Any, tmp_path: Path, end: str
) -> None:
    file, report = tmp_path / "old.csv", tmp_path / "refused.csv"
    lines = ["\ufeffemail,version", *(f'clinic-{n}@example.org,"7.0.3"' for n in range(3_000))]
    lines[11] = 'ann@example.org,"7.0.3'
    lines[2_001] = 'bob@example.org,"' + end + '7.0.3"'
    file.write_bytes(end.join(lines).encode())

    result = run("import", file, "--report", report)

    assert "2,998 new, 0 known before, 3 refused" in result.output
    assert [row[0] for row in csv.reader(report.read_text().splitlines())] == ["line", "12", "2002", "2003"]
    assert len(stored()) == 2_998


def test_a_line_without_an_end_is_skipped_in_bounded_memory(run: Run, stored: Any, tmp_path: Path) -> None:
    file, report = tmp_path / "old.csv", tmp_path / "refused.csv"
    with file.open("w") as opened:
        opened.write("email\n")
        opened.writelines('"' + "a" * 999_999 for _ in range(50))
        opened.write("\nbob@example.org\n" + "a" * registrations_cli.LONGEST_LINE + "\neve@example.org")

    tracemalloc.start()
    result = run("import", file, "--report", report)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert "2 new, 0 known before, 2 refused" in result.output
    assert [row[0] for row in csv.reader(report.read_text().splitlines())] == ["line", "2", "4"]
    assert [row[0] for row in stored()] == ["bob@example.org", "eve@example.org"]
    assert peak < 10_000_000


@pytest.mark.parametrize("heading", ["", "name", "email,email", "e-mail", ",,", "email," + "x" * 70_000])
def test_a_table_without_the_names_of_its_columns_is_refused(run: Run, heading: str) -> None:
    result = run("import", input=table(heading, "ann@example.org"))

    assert result.exit_code == 2
    assert "must name the columns, each once; only email is needed. There may be: email, product_id" in result.output


@pytest.mark.parametrize(
    ("text", "encoding", "advice"),
    [
        ("email;status", "utf-8-sig", "Separate the columns by commas, not by semicolons or tabs."),
        ('"email";"status"', "utf-8", "Separate the columns by commas, not by semicolons or tabs."),
        ("email\tstatus", "utf-16", "Separate the columns by commas, not by semicolons or tabs."),
        ("email,status", "utf-16", "The file is not UTF-8 text: save as CSV UTF-8."),
        ("email,status", "utf-16-le", "The file is not UTF-8 text: save as CSV UTF-8."),
    ],
)
def test_a_table_that_a_spreadsheet_wrote_in_another_way_is_refused_with_what_helps(
    run: Run, text: str, encoding: str, advice: str
) -> None:
    result = run("import", input=table(text, "ann@example.org").encode(encoding))

    assert result.exit_code == 2
    assert advice in result.output


def test_columns_without_a_name_at_the_end_are_left_out_while_they_are_empty(run: Run, stored: Any) -> None:
    lines = ("ann@example.org,active,,", "bob@example.org,active", "eve@example.org,active, ,x", "x@example.org,,,,")
    result = run("import", input=table("email,status,,", *lines))

    assert "2 new, 0 known before, 2 refused" in result.output
    assert [row[0] for row in stored()] == ["ann@example.org", "bob@example.org"]


def test_a_dry_run_stores_nothing(run: Run, stored: Any) -> None:
    result = run("import", "--dry-run", input=table("email", "ann@example.org", "nobody"))

    assert "1 new, 0 known before, 1 refused. Nothing was stored." in result.output
    assert stored() == []


def test_nobody_is_made_active_by_an_import_but_it_can_take_people_off(application: Flask, run: Run) -> None:
    with application.app_context():
        for status in ("opted_out", "bounced", "complained", "unconfirmed"):
            factories.register(1, status=RegistrationStatus(status))
        [active] = factories.register(1)
        emails = db.session.execute(select(Registration.email)).scalars().all()

    run("import", input=table("email,status", *(f"{email},active" for email in emails)))
    assert statuses(application) == ["opted_out", "bounced", "complained", "unconfirmed", "active"]

    run("import", input=table("email,status", f"{active.upper()},opted_out"))
    assert statuses(application) == ["opted_out", "bounced", "complained", "unconfirmed", "opted_out"]


_S = RegistrationStatus
TAKEN_OFF = [
    (_S.OPTED_OUT, {_S.ACTIVE, _S.UNCONFIRMED, _S.BOUNCED}),
    (_S.BOUNCED, {_S.ACTIVE}),
    (_S.COMPLAINED, {_S.ACTIVE, _S.UNCONFIRMED, _S.BOUNCED, _S.OPTED_OUT}),
]
"""For each status that takes an address off, those that it takes it from."""


@pytest.mark.parametrize(("status", "before"), TAKEN_OFF)
def test_what_asks_for_more_before_the_next_mail_replaces_what_asks_for_less(
    application: Flask, run: Run, status: RegistrationStatus, before: set[RegistrationStatus]
) -> None:
    expected = [status if one in before else one for one in _S if one is not _S.ERASED]
    for by_import in (True, False):
        with application.app_context():
            empty()
            emails = [factories.register(1, status=one)[0] for one in _S if one is not _S.ERASED]
        if by_import:
            run("import", input=table("email,status", *(f"{email},{status}" for email in emails)))
        else:
            exits = [run("suppress", email, "--reason", status).exit_code for email in emails]
            assert exits == [int(one not in before) for one in _S if one is not _S.ERASED]
        assert statuses(application) == expected


@pytest.mark.parametrize("status", ["opted_out", "complained"])
def test_an_imported_no_stops_the_confirmation_mail_that_is_due_and_voids_the_link_of_the_last(
    application: Flask, client: FlaskClient, run: Run, status: str
) -> None:
    now = datetime.now(UTC)
    with application.app_context():
        [email] = factories.register(1, status=_S.UNCONFIRMED)
        link = services.current().tokens.confirmation_url(factories.product_id(email), now)
        confirmations.request(db.session().connection(), email, now)
        db.session.execute(update(Registration).values(confirmation_sent_at=now))
        db.session.commit()
        assert confirmations.are_due(db.session(), now + timedelta(days=2))

    run("import", input=table("email,status", f"{email},{status}"))

    assert client.post(urlsplit(link).path, follow_redirects=True).status_code == 410
    assert statuses(application) == [status]
    with application.app_context():
        assert not confirmations.are_due(db.session(), now + timedelta(days=2))


def test_an_imported_opt_out_of_an_address_that_bounced_outlives_a_registration(
    application: Flask, client: FlaskClient, run: Run
) -> None:
    with application.app_context():
        [email] = factories.register(1, status=_S.BOUNCED)
    run("import", input=table("email,status", f"{email},opted_out"))

    assert client.post("/api/registration", data={"email": email}).status_code == 201

    assert statuses(application) == ["opted_out"]


def statuses(application: Flask) -> list[str]:
    with application.app_context():
        return list(db.session.execute(select(Registration.status).order_by(Registration.id)).scalars())


def test_who_was_erased_stays_away(application: Flask, run: Run, stored: Any) -> None:
    with application.app_context():
        factories.register_as("ann@example.org")
    assert run("forget", "--yes", "ann@example.org").exit_code == 0

    result = run("import", input=table("email", "Ann@example.org", "bob@example.org"))

    assert "1 new, 0 known before, 1 refused" in result.output
    assert [row[0] for row in stored()] == ["", "bob@example.org"]


def test_one_address_is_one_registration_with_all_its_installations(run: Run, stored: Any) -> None:
    lines = table("email,version", "ann@example.org,7.0.3", "ANN@example.org,7.0.2", "ann@example.org,7.0.3")

    assert "1 new, 2 known before" in run("import", input=lines).output
    assert "0 new, 3 known before" in run("import", input=lines).output
    assert [row[2] for row in stored()] == ["7.0.3", "7.0.2"]


def test_a_product_id_has_one_address_only(run: Run, stored: Any) -> None:
    lines = table("email,product_id", *(f"{name}@example.org,{PRODUCT_ID}" for name in ("ann", "bob")))

    assert "1 new, 0 known before, 1 refused" in run("import", input=lines).output
    assert "0 new, 1 known before, 1 refused" in run("import", input=lines).output


def test_a_chunk_that_others_got_into_the_way_of_is_tried_again(
    run: Run, stored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [1, 2]

    def take_in(*arguments: Any, **named: Any) -> Any:
        tally = original(*arguments, **named)
        if left and left.pop():
            raise IntegrityError("INSERT", {}, Exception())
        return tally

    original = transfers.take_in
    monkeypatch.setattr(transfers, "take_in", take_in)

    assert "1 new, 0 known before" in run("import", input=table("email", "ann@example.org")).output
    assert len(stored()) == 1


def test_an_import_killed_in_the_middle_and_run_again_is_complete_and_nothing_is_double(
    application: Flask, database_url: str, settings: dict[str, str], run: Run, tmp_path: Path
) -> None:
    number = 20_000
    file = tmp_path / "old.csv"
    lines = (f"clinic-{n}@example.org,{uuid.UUID(int=n + 1)},7.0.{n % 4}" for n in range(number))
    file.write_text(table("email,product_id,version", *lines))
    command = [sys.executable, "-m", "flask", "--app", "application", "registrations", "import", str(file)]
    environment = {**os.environ, **settings, "DB_CONN_STR": database_url, "DEVELOPMENT": "true"}

    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        while not rows(application, Registration) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    there = rows(application, Registration)
    assert 0 < there < number

    assert f"{number - there:,} new, {there:,} known before, 0 refused" in run("import", file).output
    assert rows(application, Registration) == rows(application, Installation) == number


def rows(application: Flask, model: type[Registration | Installation]) -> int:
    with application.app_context():
        return db.session.execute(select(func.count()).select_from(model)).scalar_one()


def test_an_export_can_be_imported_again(
    application: Flask, run: Run, stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "IDS_AT_ONCE", 2)
    lines = ["+x@example.org,7.0.3", "'y@example.org,-dev", "ann@example.org,7.0.3", "ann@example.org,7.0.2"]
    run("import", input=table("email,version,status", *(f"{line},bounced" for line in lines)))
    before = stored()

    file = tmp_path / "new.csv"
    assert run("export", file).exit_code == 0

    cells = list(csv.reader(file.read_text().splitlines()))
    assert cells[0] == list(transfers.COLUMNS)
    assert [row[0] for row in cells[1:]] == ["'+x@example.org", "''y@example.org", "ann@example.org", "ann@example.org"]
    assert cells[2][2] == "'-dev"
    with application.app_context():
        db.session.execute(Installation.__table__.delete())
        db.session.execute(Registration.__table__.delete())
        db.session.commit()
    assert run("import", file).exit_code == 0
    assert stored() == before


def test_an_installation_of_which_nothing_is_known_is_exported_and_imported(
    application: Flask, run: Run, tmp_path: Path
) -> None:
    """Who has one gets a notice about any version, also beside another of which the version is known."""
    file = tmp_path / "all.csv"
    with application.app_context():
        factories.register_as("ann@example.org", "bob@example.org")
        for version in ("", "8.0.0"):
            factories.install("ann@example.org", version)
        run("export", file)
        empty()
    run("import", file)

    with application.app_context():
        assert set(db.session.execute(select(Installation.version)).scalars()) == {"", "8.0.0"}
        assert db.session.execute(select(func.count()).select_from(Installation)).scalar_one() == 2


@pytest.mark.parametrize(
    "line",
    [
        "ann@mailinator.com,opted_out,7.0.3,",
        f"ann@mailinator.com,Complained,{'7' * 70},",
        "ann@mailinator.com,bounced,,2999-01-01",
        "ann@mailinator.com,opted_out,,yesterday",
        "ann@mailinator.com,opted_out,caf\ufffd,",
        f"ann@mailinator.com,opted_out,,{'x' * 2000}",
    ],
)
def test_a_line_that_takes_an_address_off_counts_whatever_else_is_wrong_with_it(
    application: Flask, run: Run, stored: Any, line: str
) -> None:
    with application.app_context():
        factories.register_as("ann@mailinator.com")

    result = run("import", input=table("email,status,version,last_seen_at", line))

    assert (result.exit_code, result.output.strip()) == (0, "0 new, 1 known before, 0 refused.")
    with application.app_context():
        assert db.session.execute(select(Registration.status)).scalar_one() == line.split(",")[1].lower()
    for wrong in ("ann@example,opted_out", "ann\ufffd@example.org,opted_out", "ann@example.org,opted_out\ufffd"):
        assert run("import", input=table("email,status", wrong)).exit_code == 1


def test_of_a_line_that_takes_an_address_off_what_can_be_read_is_kept(application: Flask, run: Run) -> None:
    here, taken = uuid.uuid4(), uuid.uuid4()
    lines = [
        f"bob@example.org,,{taken},,",
        f"ann@example.org,opted_out,{here},2024-01-01,2999-01-01",
        f"=?x@example.org,complained,{taken},,",
    ]

    result = run("import", input=table("email,status,product_id,created_at,last_seen_at", *lines))

    assert (result.exit_code, result.output.strip()) == (0, "3 new, 0 known before, 0 refused.")
    with application.app_context():
        columns = Registration.email, Registration.status, Registration.product_id, Registration.created_at
        bob, ann, other = db.session.execute(select(*columns).order_by(Registration.id)).all()
    assert (ann.status, ann.product_id, ann.created_at.year) == ("opted_out", here, 2024)
    assert (other.status, bob.product_id) == ("complained", taken)
    assert other.product_id != taken


def test_an_installation_that_was_not_seen_for_long_is_as_old_after_an_export_and_an_import(
    application: Flask, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "all.csv"
    created_at, seen_at = datetime(2020, 1, 1, tzinfo=UTC), datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
    with application.app_context():
        factories.register_as("ann@example.org", "bob@example.org", created_at=created_at)
        factories.install("ann@example.org", "7.0.3", last_seen_at=seen_at)
        run("export", file)
        empty()
    run("import", file)

    with application.app_context():
        times = select(Installation.first_seen_at, Installation.last_seen_at)
        assert db.session.execute(times).one() == (created_at, seen_at)


def test_of_two_lines_about_an_installation_the_later_tells_when_it_was_last_seen(application: Flask, run: Run) -> None:
    lines = (f"ann@example.org,7.0.3,{year}-01-01" for year in (2021, 2025, 2023))
    run("import", input=table("email,version,last_seen_at", *lines))

    with application.app_context():
        assert db.session.execute(select(Installation.last_seen_at)).scalar_one().year == 2025


def test_an_installation_seen_again_further_down_a_long_table_was_last_seen_then(
    application: Flask, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "LINES_AT_ONCE", 1)
    lines = (f"ann@example.org,7.0.3,{day}" for day in ("2021-03-01", "2025-03-01", "2023-03-01"))
    run("import", input=table("email,version,last_seen_at", *lines))

    with application.app_context():
        (seen,) = db.session.execute(select(Installation.first_seen_at, Installation.last_seen_at)).all()
        assert (seen.first_seen_at.year, seen.last_seen_at.year) == (2021, 2025)


def test_a_line_without_a_time_that_is_imported_again_is_no_new_sighting(application: Flask, run: Run) -> None:
    seen = []
    for _ in range(2):
        run("import", input=table("email,version", "ann@example.org,7.0.3"))
        with application.app_context():
            seen.append(db.session.execute(select(Installation.last_seen_at)).scalar_one())

    assert seen[0] == seen[1]


def test_an_installation_was_first_seen_when_it_was_last_seen_if_that_was_before_the_registration(
    application: Flask, run: Run
) -> None:
    run(
        "import",
        input=table("email,version,created_at,last_seen_at", "ann@example.org,7.0.3,2024-01-01,2021-01-01"),
    )

    with application.app_context():
        assert db.session.execute(select(Installation.first_seen_at)).scalar_one().year == 2021


def test_a_report_does_not_overwrite_what_is_imported(run: Run, stored: Any, tmp_path: Path) -> None:
    file = tmp_path / "all.csv"
    file.write_text(table("email", "ann@example.org"))

    result = run("import", file, "--report", tmp_path / "." / "all.csv")

    assert result.exit_code == 2
    assert "would overwrite the file" in result.output
    assert file.read_text() == table("email", "ann@example.org")
    assert stored() == []


def test_an_export_can_be_read_by_its_owner_alone(application: Flask, run: Run, tmp_path: Path) -> None:
    with application.app_context():
        factories.register(1)

    for form in ("csv", "jsonl"):
        assert run("export", "--format", form, tmp_path / form).exit_code == 0
        assert (tmp_path / form).stat().st_mode & 0o777 == 0o600
    result = run("export", tmp_path / "nowhere" / "all.csv")
    assert result.exit_code == 1
    assert "No such file" in result.output


def test_an_export_without_a_database_leaves_an_older_one_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "all.csv"
    file.write_text("precious")
    failing.at_first(monkeypatch, windows, "highest_id", failing.deadlock())

    result = run("export", file)

    assert result.exit_code == 1
    assert "The database does not answer" in result.output
    assert file.read_text() == "precious"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_an_export_to_a_full_disk_ends_with_a_sentence(run: Run) -> None:
    result = run("export", "/dev/full")

    assert result.exit_code == 1
    assert "Error: A file could not be read or written: No space left on device." in result.output
    assert click.get_current_context(silent=True) is None  # which a file that fails later would leave behind


def test_an_export_as_json_lines_leaves_out_who_was_erased(application: Flask, run: Run) -> None:
    with application.app_context():
        [email] = factories.register(1)
        factories.register(1, status=RegistrationStatus.ERASED)

    result = run("export", "--format", "jsonl")

    [line] = map(json.loads, result.output.splitlines())
    assert (line["email"], line["status"], line["version"]) == (email, "active", "")
    assert line.keys() == set(transfers.COLUMNS)


def test_show_tells_all_that_is_known_of_an_address(application: Flask, run: Run) -> None:
    run("import", input=table("email,version", "ann@example.org,7.0.3"))

    known = json.loads(run("show", "-", input="Ann@example.org\n").output)

    assert (known["email"], known["status"], known["ip_address"]) == ("ann@example.org", "active", None)
    assert [installation["version"] for installation in known["installations"]] == ["7.0.3"]
    assert (known["mails"], known["soft_bounces"], known["confirmation_due_at"]) == ([], 0, None)


@pytest.mark.parametrize("command", ["show", "suppress"])
def test_an_unknown_or_invalid_address_is_said_to_be_so(run: Run, command: str) -> None:
    for email, words in (("ann@example.org", "not registered"), ("nobody", "@-sign")):
        result = run(command, email)
        assert result.exit_code == 1
        assert words in result.output


def test_suppress_takes_an_address_off(application: Flask, run: Run) -> None:
    with application.app_context():
        [email] = factories.register(1)

    assert run("suppress", email, "--reason", "complained").exit_code == 0

    assert statuses(application) == ["complained"]
    again = run("suppress", email)
    assert (again.exit_code, again.output) == (
        1,
        "Error: The address gets no mail anyway, for as good a reason: it is complained.\n",
    )


@pytest.mark.parametrize(
    "before", [RegistrationStatus.UNCONFIRMED, RegistrationStatus.OPTED_OUT, RegistrationStatus.COMPLAINED]
)
def test_who_was_taken_off_gets_no_confirmation_mail_and_comes_back_by_none_from_before(
    application: Flask, run: Run, before: RegistrationStatus
) -> None:
    now = datetime.now(UTC)
    with application.app_context():
        asked, due = factories.register(2, status=before)
        for email in (asked, due):
            with db.engines[AUTOCOMMIT].connect() as connection:
                confirmations.request(connection, email, now)
            if email == asked:
                (mail,) = confirmations.take(db.session(), now, tokens=services.of(application).tokens, limit=10)
                db.session.commit()

    assert run("suppress", asked, "--reason", "bounced").exit_code == 1
    assert [run("suppress", email).exit_code for email in (asked, due)] == [0, 0]
    assert [run("suppress", email).exit_code for email in (asked, due)] == [1, 1]

    with application.app_context():
        assert confirmations.take(db.session(), now, tokens=services.of(application).tokens, limit=10) == []
        assert not consent.is_confirmable(db.session(), ConfirmationLink(mail.product_id, now))


def test_forget_asks_and_erases(application: Flask, run: Run) -> None:
    with application.app_context():
        [email, other] = factories.register(2)

    assert run("forget", email, input="n\n").exit_code == 1
    assert run("forget", "-", input=email).exit_code == 2
    assert statuses(application) == ["active", "active"]
    assert run("forget", email, input="y\n").exit_code == 0
    assert run("forget", "--yes", "-", input=other).exit_code == 0
    assert run("forget", "--yes", "eve@example.org").exit_code == 1
    assert statuses(application) == ["erased", "erased"]


def test_count_counts_by_status(application: Flask, run: Run) -> None:
    with application.app_context():
        factories.register(2)
        factories.register(1, status=RegistrationStatus.BOUNCED)

    assert json.loads(run("count", "--json").output)["statuses"] == {
        "active": 2, "unconfirmed": 0, "opted_out": 0, "bounced": 1, "complained": 0, "erased": 0
    }  # fmt: skip
    assert "registered              3" in run("count").output


def test_every_command_is_in_readme(run: Run) -> None:
    readme = (ROOT / "README.md").read_text()
    for command in ("import", "export", "show", "forget", "suppress", "count"):
        assert f"flask --app application registrations {command}" in readme
        assert run(command, "--help").exit_code == 0
