"""The pages behind the links in mails."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from babel.messages.extract import extract_from_file
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po
from flask.testing import FlaskClient
from markupsafe import escape
from sqlalchemy import event, func, insert, select, update
from sqlalchemy.orm import Session

from registration import ROOT, addresses, consent, counting, erasures, ledger, services, windows
from registration.db import Base, db
from registration.models import (
    ConfirmationMail,
    ConfirmationRequest,
    Installation,
    Registration,
    RegistrationStatus,
    SoftBounce,
    Variation,
)
from registration.web import headers, optout

from . import factories, failing

pytestmark = pytest.mark.usefixtures("in_context")

S = RegistrationStatus
CATALOGUES = sorted((ROOT / "registration" / "translations").glob("*/LC_MESSAGES/messages.po"))


def row() -> Registration:
    db.session.rollback()
    return db.session.execute(select(Registration)).scalar_one()


def path(kind: str = "opt_out") -> str:
    tokens, found = services.current().tokens, row()
    url = tokens.opt_out_url(found.product_id)
    if kind != "opt_out":
        url = tokens.confirmation_url(found.product_id, datetime.now(UTC) - timedelta(days=8))
    return url.removeprefix("http://127.0.0.1:5000")


def test_looking_changes_nothing_and_the_button_opts_out(client: FlaskClient) -> None:
    factories.register()
    for look in (client.get, client.head):
        assert look(path()).status_code == 200
        assert look(f"{path()}/erase").status_code == 200
    assert row().status is S.ACTIVE

    for _ in range(2):
        answer = client.post(path())
        assert (answer.status_code, "Undo" in answer.text, "Set-Cookie" in answer.headers) == (200, True, False)
        assert row().status is S.OPTED_OUT
    client.post(f"{path()}/undo")
    assert row().status is S.ACTIVE


def test_the_link_of_a_test_leads_to_a_page_that_explains_it(client: FlaskClient) -> None:
    link = factories.letterhead(public_url="https://registration.example.org").link(None)

    answer = client.get(link.removeprefix("https://registration.example.org"))

    assert (answer.status_code, "This was a test" in answer.text, "<form" in answer.text) == (200, True, False)
    assert client.post("/opt-out/test").status_code == 404


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_mail_programs_one_click_opts_out(client: FlaskClient, content_type: str) -> None:
    factories.register()

    answer = client.post(path(), data={"List-Unsubscribe": "One-Click"}, content_type=content_type)

    assert answer.status_code == 200
    assert row().status is S.OPTED_OUT


@pytest.mark.parametrize(
    ("page", "button", "shows"),
    [
        ("", "?button=1", "This address gets no more mail"),
        ("/undo", "/undo", "Thank you"),
        ("", "/erase", "Your address is deleted"),
    ],
)
def test_a_button_leads_on_to_a_page_that_can_be_reloaded(
    client: FlaskClient, page: str, button: str, shows: str
) -> None:
    factories.register(status=S.OPTED_OUT if button == "/undo" else S.ACTIVE)
    link = path()

    answer = client.post(link + button)

    assert (answer.status_code, answer.location) == (303, link + page)
    for _ in range(2):
        assert shows in client.get(answer.location).text


@pytest.mark.parametrize("call", ["opt-out/forged", "opt-out/forged/undo", "opt-out/forged/erase", "confirm/forged"])
def test_a_forged_link_gets_a_friendly_page(client: FlaskClient, call: str) -> None:
    answer = client.post(f"/{call}")

    assert (answer.status_code, answer.mimetype) == (404, "text/html")
    assert "This link does not work" in answer.text


@pytest.mark.parametrize("start", ["/opt-out", "/confirm"])
@pytest.mark.parametrize(
    "end", ["", "/", "/x/", "/x/y", "/x/y/z", f"/{'x' * 101}", f"/{'x' * 5000}/undo", "/x%2Fy", "/x/undo/"]
)
def test_a_link_that_was_cut_off_or_made_longer_gets_the_same_page(client: FlaskClient, start: str, end: str) -> None:
    for call in (client.get, client.post):
        answer = call(start + end)

        assert (answer.status_code, answer.mimetype) == (404, "text/html")
        assert "This link does not work" in answer.text


@pytest.mark.parametrize(
    ("status", "title"), [(S.ACTIVE, "Thank you"), (S.OPTED_OUT, "This address gets no more mail")]
)
def test_the_address_of_a_page_that_was_posted_can_be_opened_again(
    client: FlaskClient, status: RegistrationStatus, title: str
) -> None:
    factories.register(status=status)

    assert f'action="{path()}"' in client.get(f"{path()}/erase").text.partition("Go back")[0].rpartition("<form")[2]
    for page in ("", "/undo", "/erase"):
        assert client.get(path() + page).status_code == 200
    assert title in client.get(f"{path()}/undo").text
    assert row().status is status


TITLES = {
    S.ACTIVE: ("OpenEMR's notices", "Thank you, you are registered"),
    S.UNCONFIRMED: ("Your registration is not confirmed", "This link has expired"),
    S.BOUNCED: ("You get no mail from us", "You get no mail from us"),
    S.OPTED_OUT: ("This address gets no more mail from us", "This link has expired"),
    S.COMPLAINED: ("You get no mail from us", "This link has expired"),
    S.ERASED: ("Your address is deleted", "Your address is deleted"),
}


@pytest.mark.parametrize("status", TITLES)
@pytest.mark.parametrize("language", optout.LANGUAGES)
def test_the_pages_say_where_a_registration_stands(
    client: FlaskClient, status: RegistrationStatus, language: str
) -> None:
    factories.register(status=status)
    used = services.current().tokens.confirmation_url(row().product_id, datetime.now(UTC))
    standing, confirmed = (
        client.get(link.removeprefix("http://127.0.0.1:5000"), headers={"Accept-Language": language}).text
        for link in (path(), used)
    )

    for page, title in zip((standing, confirmed), TITLES[status], strict=True):
        assert f"<h1>{escape(translated(title, language))}</h1>" in page
    assert ("You are registered" in standing + confirmed) is (status is S.ACTIVE and language == "en")


def translated(text: str, language: str) -> str:
    if language == "en":
        return text
    (file,) = (file for file in CATALOGUES if file.parent.parent.name == language)
    return str(read_po(io.BytesIO(file.read_bytes())).get(text).string)


def test_an_expired_confirmation_and_a_foreign_registration_say_so(client: FlaskClient) -> None:
    factories.register()
    assert client.post(path("confirm")).status_code == 410
    foreign = path()
    db.session.execute(Registration.__table__.delete())
    db.session.commit()
    assert client.post(foreign).status_code == 404


def test_a_complaint_stays_one(client: FlaskClient) -> None:
    factories.register(status=S.COMPLAINED)
    client.post(path())
    client.post(f"{path()}/undo")
    assert row().status is S.COMPLAINED


@pytest.mark.parametrize("way", ["undo", "confirm"])
@pytest.mark.parametrize("said", [S.ERASED, S.COMPLAINED])
def test_what_is_said_while_somebody_comes_back_has_the_say(
    client: FlaskClient, way: str, said: RegistrationStatus
) -> None:
    factories.register(status=S.OPTED_OUT)
    product_id, sent_at = row().product_id, datetime.now(UTC)
    db.session.execute(update(Registration).values(confirmation_sent_at=sent_at))
    db.session.commit()
    tokens = services.current().tokens
    url = tokens.opt_out_url(product_id) + "/undo" if way == "undo" else tokens.confirmation_url(product_id, sent_at)

    def say(*arguments: Any) -> None:
        if arguments[2].startswith("DELETE FROM soft_bounce") and row().status is S.OPTED_OUT:
            with Session(db.engine) as other, other.begin():
                other.execute(update(Registration).values(status=said, confirmation_sent_at=None))

    event.listen(db.engine, "before_cursor_execute", say)
    client.post(url.removeprefix("http://127.0.0.1:5000"))
    event.remove(db.engine, "before_cursor_execute", say)

    assert row().status is said


def test_an_erasure_stays_one(client: FlaskClient) -> None:
    factories.register()
    link = path()
    client.post(f"{link}/erase")
    client.post(link)
    client.post(f"{link}/undo")
    assert row().status is S.ERASED


def test_erasing_leaves_neither_the_address_nor_its_id_in_any_other_table(client: FlaskClient) -> None:
    (email,) = factories.register()
    erased = row()
    client.post("/api/registration", data={"email": email, "version": "7.0.3"})
    its = {"registration_id": erased.id}
    db.session.execute(insert(SoftBounce).values(broadcast_id=1, **its))
    db.session.execute(insert(ConfirmationRequest).values(due_at=datetime.now(UTC), **its))
    db.session.execute(insert(ConfirmationMail).values(mailbox="x", sent_at=datetime.now(UTC), next_id=erased.id))
    db.session.execute(insert(Variation).values(mailbox=email, email_key=f"ann+{email}"))
    db.session.commit()
    link = path()

    client.post(f"{link}/erase")

    db.session.rollback()
    for table in Base.metadata.sorted_tables:
        for found in map(dict, db.session.execute(select(table)).mappings()):
            assert email not in map(str, found.values()), table.name
            named = {found.get("registration_id"), found.get("next_id")}
            assert erased.id not in named or table.name == "delivery", table.name


def test_taking_an_opt_out_back_needs_no_confirmation_that_was_asked_for(client: FlaskClient) -> None:
    factories.register(status=S.OPTED_OUT)
    db.session.execute(update(Registration).values(confirmation_sent_at=datetime.now(UTC)))
    db.session.commit()

    client.post(f"{path()}/undo")

    assert (row().status, row().confirmation_sent_at) == (S.ACTIVE, None)


@pytest.mark.parametrize("call", ["opt_out", "undo_opt_out", "erase", "confirm"])
def test_what_the_database_had_to_choose_against_is_done_again(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """An erasure locks in another order than a sender that takes confirmation mails."""
    factories.register()
    ways = {"opt_out": path(), "undo_opt_out": f"{path()}/undo", "erase": f"{path()}/erase"}
    ways["confirm"] = services.current().tokens.confirmation_url(row().product_id, datetime.now(UTC))
    left = failing.at_first(monkeypatch, consent, call, failing.deadlock())

    assert client.post(ways[call].removeprefix("http://127.0.0.1:5000")).status_code < 400
    assert left == []


def test_erasing_leaves_a_keyed_hash_and_lowers_the_count_once(client: FlaskClient) -> None:
    (email,) = factories.register(ip_address="192.0.2.1")
    client.post("/api/registration", data={"email": email, "version": "7.0.3"})
    counting.remember(db.session(), up_to=windows.highest_id(db.session()))
    db.session.commit()
    for _ in range(2):
        assert "Your address is deleted" in client.post(f"{path()}/erase", follow_redirects=True).text
    for look in (path(), f"{path()}/erase"):
        assert "Your address is deleted" in client.get(look).text

    found = row()
    assert (found.email, found.email_key, found.ip_address) == ("", f"erased:{found.id}", None)
    assert found.status is S.ERASED
    assert db.session.execute(select(func.count()).select_from(Installation)).scalar_one() == 0
    assert client.get("/api/registration/unique").json == {"count": 0}
    key = addresses.normalise(email).key
    tokens = services.current().tokens
    assert erasures.in_force(db.session(), [key, "bob@example.org"], tokens=tokens) == {key}
    db.session.rollback()

    assert client.post("/api/registration", data={"email": email}).status_code == 201
    assert erasures.in_force(db.session(), [key], tokens=tokens) == set()
    assert client.get("/api/registration/unique").json == {"count": 1}


def test_of_a_thousand_who_opt_out_in_mid_send_only_claimed_batches_are_mailed(client: FlaskClient) -> None:
    emails = factories.register(1200)
    broadcast_id = factories.start_broadcast()
    while ledger.fill(db.session(), broadcast_id):
        db.session.commit()
    batch = ledger.claim(db.session(), broadcast_id, lease="first", limit=50, now=datetime.now(UTC))
    db.session.commit()
    tokens = services.current().tokens
    ids = db.session.execute(select(Registration.product_id).order_by(Registration.id).limit(1000)).scalars().all()
    db.session.rollback()

    for product_id in ids:
        client.post(tokens.opt_out_url(product_id).removeprefix("http://127.0.0.1:5000"))
    mailed = []
    while more := ledger.claim(db.session(), broadcast_id, lease="more", limit=300, now=datetime.now(UTC)):
        mailed += [recipient.address for recipient in more.recipients]
        db.session.commit()

    assert len(batch.recipients) == 50
    assert mailed == emails[1000:]


@pytest.mark.parametrize(
    ("asked", "language", "direction"),
    [
        ("es-MX", "es", "ltr"),
        ("pt-BR,en;q=0.5", "pt", "ltr"),
        ("he", "he", "rtl"),
        ("iw-IL", "he", "rtl"),
        ("es;q=0", "en", "ltr"),
        ("es;q=0, de;q=0.1", "de", "ltr"),
        ("xx", "en", "ltr"),
        ("", "en", "ltr"),
    ],
)
def test_a_page_speaks_the_readers_language(client: FlaskClient, asked: str, language: str, direction: str) -> None:
    answer = client.get("/opt-out/forged", headers={"Accept-Language": asked})

    assert f'<html lang="{language}" dir="{direction}">' in answer.text
    assert answer.headers["Content-Language"] == language
    assert ("This link does not work" in answer.text) is (language == "en")


@pytest.mark.parametrize("file", CATALOGUES, ids=lambda file: file.parent.parent.name)
def test_a_catalogue_is_complete_and_compiled(file: Path) -> None:
    catalogue = read_po(io.BytesIO(file.read_bytes()))
    compiled = read_mo(io.BytesIO(file.with_suffix(".mo").read_bytes()))
    texts = {found[1] for found in extract_from_file("python", ROOT / "registration" / "web" / "optout.py")}

    written = {message.id: message.string for message in catalogue if message.id}
    assert written.keys() == texts
    assert all(written.values())
    assert {message.id: message.string for message in compiled if message.id} == written


def test_there_is_a_catalogue_for_every_language_but_english() -> None:
    assert {file.parent.parent.name for file in CATALOGUES} | {"en"} == set(optout.LANGUAGES)


def test_a_page_is_protected_and_keeps_its_link_to_itself(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    factories.register()
    caplog.set_level("INFO")
    answer = client.get(path())

    assert answer.headers["Content-Security-Policy"] == optout.CONTENT_SECURITY_POLICY
    others = headers.HEADERS.keys() - {"Content-Security-Policy"}
    assert {name: answer.headers[name] for name in others} == {name: headers.HEADERS[name] for name in others}
    assert "<script" not in answer.text
    assert "style=" not in answer.text
    assert "Strict-Transport-Security" not in answer.headers
    assert client.get("/opt-out.css").mimetype == "text/css"
    assert not any(path().rpartition("/")[2] in str(vars(record)) for record in caplog.records)
