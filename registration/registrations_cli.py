"""The commands about registrations: parse, call one core function, commit, print."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from functools import partial
from io import SEEK_END, TextIOWrapper
from pathlib import Path
from typing import IO, Any

import click
from sqlalchemy.exc import IntegrityError, OperationalError

from . import addresses, consent, counting, dossiers, services, spreadsheets, transfers, windows
from .addresses import Address
from .cli import Group
from .db import commit_step, db
from .models import RegistrationStatus
from .transfers import COLUMNS, Line, RefusedLineError, Tally

TRIES = 5
"""How often a chunk is tried that others who register at the same time got into the way of."""
LONGEST_CELL = 1_000
LONGEST_LINE = 65_536
"""Characters of a line that are read: room for many of the longest cells, and a bound for what has no line breaks."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_ADVICE = (
    (";\t", "Separate the columns by commas, not by semicolons or tabs. "),
    (f"\0{_REPLACEMENT}", "The file is not UTF-8 text: save as CSV UTF-8. "),
)
"""What a first line without the columns' names holds when a spreadsheet wrote it in another way, and what helps."""
_UNKNOWN = "This address is not registered."

registrations_group = Group("registrations", help="Move registrations in and out, and look after single ones.")
_yes = click.option("--yes", is_flag=True, help="Do not ask.")
_email = click.argument("email", help="The address; `-` reads it from standard input, so that no shell remembers it.")


@registrations_group.command("import")
@click.option("--dry-run", is_flag=True, help="Store nothing; tell what would become of the lines.")
@click.option("--report", type=click.File("w", encoding="utf-8", lazy=True), help="A CSV file of the refused lines.")
@click.argument("file", type=click.File("rb"), default="-", help="A CSV file in UTF-8 with the columns' names on top.")
def import_(file: IO[bytes], report: IO[str] | None, *, dry_run: bool) -> None:
    """Import registrations from FILE, or standard input.

    The columns: email; if you like product_id, version, distribution, created_at, status and last_seen_at. Run it
    again after an interruption: what is there already is left as it is. Exit status 1: lines were refused.
    """
    if report and Path(report.name).exists() and Path(file.name).exists() and Path(report.name).samefile(file.name):
        raise click.UsageError("The report would overwrite the file that is imported. Name another one.")
    text = TextIOWrapper(file, "utf-8-sig", errors="replace")
    rows = _rows(text)
    written = csv.writer(report) if report else None
    if written:
        written.writerow(("line", "reason"))
    outcomes: Counter[str] = Counter()
    with _bar(file) as bar:
        for chunk in iter(lambda: list(itertools.islice(rows, transfers.LINES_AT_ONCE)), []):
            tally = _take_in(chunk, dry_run=dry_run)
            outcomes += tally.outcomes
            if written and report:
                written.writerows(sorted(tally.refused))
                report.flush()
            if bar is not None:
                bar.update(file.tell() - bar.pos)
    text.detach()
    click.echo(
        f"{outcomes['new']:,} new, {outcomes['known']:,} known before, {outcomes['refused']:,} refused."
        + (" Nothing was stored." if dry_run else "")
    )
    if outcomes["refused"]:
        raise click.exceptions.Exit(1)


@registrations_group.command()
@click.option("--format", "form", type=click.Choice(["csv", "jsonl"]), default="csv", show_default=True)
@click.argument("file", type=click.File("w", encoding="utf-8"), default="-")
def export(file: IO[str], form: str) -> None:
    """Export all registrations to FILE, or standard output: a line for each, or for each of its installations.

    In CSV a cell that a spreadsheet would calculate gets an apostrophe in front; the import takes it off again.
    """
    found = list(windows.split(db.session(), transfers.IDS_AT_ONCE))  # first: without a database no file is emptied
    if is_own := file.name != sys.stdout.name:
        with contextlib.suppress(OSError):  # the first write says what is wrong
            Path(file.name).touch(mode=0o600)
    with file if is_own else contextlib.nullcontext():  # closed here, so that a full disk is an error of this command
        writer = csv.writer(file)
        if form == "csv":
            writer.writerow(COLUMNS)
        for window in found:
            lines = transfers.lines_of(db.session(), window)
            db.session.rollback()
            if form == "csv":
                writer.writerows([spreadsheets.guard(cell) for cell in line] for line in lines)
            else:
                file.writelines(json.dumps(dict(zip(COLUMNS, line, strict=True))) + "\n" for line in lines)


@registrations_group.command()
@_email
def show(email: str) -> None:
    """Show all that is known of an address, as JSON: what a person has the right to be told."""
    known = dossiers.of_address(db.session(), _address(email).key)
    if known is None:
        raise click.ClickException(_UNKNOWN)
    click.echo(json.dumps(known, indent=2))


@registrations_group.command()
@_yes
@_email
def forget(email: str, *, yes: bool) -> None:
    """Erase an address for good; only keyed hashes stay, so that nobody but its owner brings it back."""
    if email == "-" and not yes:
        raise click.UsageError("There is nowhere to ask you when the address comes from a pipe: add --yes.")
    address = _address(email)
    if not yes:
        click.confirm("This cannot be undone. Erase the address?", abort=True)
    erase = partial(consent.erase, who=address, tokens=services.current().tokens, now=datetime.now(UTC))
    if not commit_step(erase):
        raise click.ClickException(_UNKNOWN)
    click.echo("The address is erased.")


@registrations_group.command()
@click.option(
    "--reason",
    type=click.Choice(sorted(status.value for status in consent.OFF)),
    default=RegistrationStatus.OPTED_OUT.value,
    show_default=True,
    help="Why.",
)
@_email
def suppress(email: str, reason: str) -> None:
    """Mail an address no more."""
    address = _address(email)
    if not commit_step(partial(consent.suppress, key=address.key, status=RegistrationStatus(reason))):
        if (status := consent.status_of(db.session(), address)) is None:
            raise click.ClickException(_UNKNOWN)
        raise click.ClickException(f"The address gets no mail anyway, for as good a reason: it is {status}.")
    click.echo("The address gets no more mail.")


@registrations_group.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def count(*, as_json: bool) -> None:
    """Count the registrations, by status."""
    found = counting.count_by_status(db.session())
    total = counting.count(db.session.connection())
    if as_json:
        click.echo(json.dumps({"count": total, "statuses": found}))
        return
    for name, number in {**found, "registered": total}.items():
        click.echo(f"{name:12} {number:>12,}")


def _rows(file: IO[str]) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield the number of each line with its cells by column, or with what is wrong with it."""
    names, width = _heading(file.readline(LONGEST_LINE + 1))
    if ignored := set(names) - set(COLUMNS):
        click.echo(f"These columns are not imported: {', '.join(sorted(map(ascii, ignored)))}", err=True)
    for number, cells in enumerate(_lines(file), 2):
        if isinstance(cells, str):
            yield number, cells
        elif cells:
            while len(names) < len(cells) <= width and not cells[-1].strip():
                cells.pop()
            yield number, _row(names, cells)


def _heading(line: str) -> tuple[list[str], int]:
    """Return the columns' names, without the empty ones that a spreadsheet leaves at the end, and how many it had."""
    cells = _cells(line)
    names = [] if isinstance(cells, str) else [name.strip().lower() for name in cells]
    width = len(names)
    while names and not names[-1]:
        names.pop()
    if "email" not in names or len(set(names)) < len(names) or len(line) > LONGEST_LINE:
        advice = next((advice for marks, advice in _ADVICE if any(mark in line for mark in marks)), "")
        raise click.UsageError(
            "The first line must name the columns, each once; only email is needed. "
            f"{advice}There may be: {', '.join(COLUMNS)}."
        )
    return names, width


def _lines(file: IO[str]) -> Iterator[list[str] | str]:
    """Yield the cells of each line, or what is wrong with it; of one that does not end only a piece is in memory.

    Each is read by itself, because no column may hold a line break: a quotation mark that nobody closes costs its
    own line, and not all up to the next one.
    """
    while line := file.readline(LONGEST_LINE + 1):
        piece = line
        while len(piece) > LONGEST_LINE and not piece.endswith("\n"):
            piece = file.readline(LONGEST_LINE + 1)
        yield _cells(line) if piece is line else f"The line is longer than {LONGEST_LINE:,} characters."


def _cells(line: str) -> list[str] | str:
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error:
        return "The line is not CSV: look at its quotation marks."


def _row(names: list[str], cells: list[str]) -> dict[str, str] | str:
    """Return the cells of a line by column, or what is wrong with it. One that takes an address off needs no others."""
    if len(cells) != len(names):
        return f"The line has {len(cells)} cells, not {len(names)}."
    row = dict(zip(names, map(spreadsheets.unguard, cells), strict=True))
    wrong = {name: reason for name, cell in row.items() if (reason := _wrong(cell))}
    if wrong and ("email" in wrong or not transfers.takes_off(row)):
        return next(iter(wrong.values()))
    return row | dict.fromkeys(wrong, "")


def _wrong(cell: str) -> str:
    if _REPLACEMENT in cell:
        return "The line is not UTF-8 text."
    return f"A cell is longer than {LONGEST_CELL:,} characters." if len(cell) > LONGEST_CELL else ""


def _take_in(chunk: list[tuple[int, dict[str, str] | str]], *, dry_run: bool) -> Tally:
    """Store a chunk in one transaction, and again when others got into its way."""
    now = datetime.now(UTC)
    unreadable, lines = Tally(), list[Line]()
    here = services.current()
    for number, cells in chunk:
        try:
            if isinstance(cells, str):
                raise RefusedLineError(cells)
            lines.append(transfers.parse(number, cells, now=now, domains=here.domains))
        except RefusedLineError as error:
            unreadable.refuse(number, str(error))
    for left in reversed(range(TRIES)):
        try:
            tally = transfers.take_in(db.session(), lines, tokens=here.tokens)
            db.session.rollback() if dry_run else db.session.commit()
            break
        except (IntegrityError, OperationalError):
            db.session.rollback()
            if not left:
                raise
    return Tally(tally.outcomes + unreadable.outcomes, tally.refused + unreadable.refused)


def _bar(file: IO[bytes]) -> AbstractContextManager[Any]:
    """Return a bar over the bytes of a file; none for a pipe, whose length nobody knows."""
    if not file.seekable():
        return nullcontext()
    length = file.seek(0, SEEK_END)
    file.seek(0)
    return click.progressbar(length=length, file=sys.stderr)


def _address(email: str) -> Address:
    return addresses.normalise(sys.stdin.readline(1_000) if email == "-" else email, is_new=False)
