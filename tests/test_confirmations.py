"""Coming back: who may do so at once, who is asked by mail, and how often."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Insert, func, insert, select, text, update
from sqlalchemy.orm import Session, sessionmaker

from registration import addresses, confirmations, consent, counting, feedback, services
from registration.db import AUTOCOMMIT, Base, db
from registration.mailers import Outcome, Verdict
from registration.mailers.letters import STOP
from registration.models import ConfirmationMail, ConfirmationRequest, Registration, RegistrationStatus, SoftBounce
from registration.sender import Sender
from registration.tokens import Tokens

from . import factories, ses_events
from .inbox import Inbox
from .people import NOW
from .stepping import work

pytestmark = pytest.mark.usefixtures("in_context")

S = RegistrationStatus


def status(email: str) -> RegistrationStatus:
    db.session.rollback()
    return db.session.execute(select(Registration.status).where(Registration.email == email)).scalar_one()


def take(now: datetime, limit: int = 10) -> list[confirmations.Confirmation]:
    return confirmations.take(db.session(), now, tokens=services.current().tokens, limit=limit)


@pytest.mark.parametrize("form", [{}, {"version": "7.0.3"}])
def test_who_bounced_is_active_again_at_once(client: FlaskClient, form: dict[str, str]) -> None:
    (email,) = factories.register(status=S.BOUNCED)

    answer = client.post("/api/registration", data={"email": email, **form})

    assert (answer.status_code, answer.json) == (201, {"productId": str(factories.product_id(email))})
    assert status(email) is S.ACTIVE


def test_whose_confirmation_mail_bounced_is_mailed_no_more_and_comes_back_unconfirmed(
    client: FlaskClient, sender: Sender, inbox: Inbox
) -> None:
    (email,) = factories.register(status=S.UNCONFIRMED)
    client.post("/api/registration", data={"email": email})
    sender.look()
    feedback.take(db.session(), [ses_events.bounce(address=email)], datetime.now(UTC))
    feedback.take_waiting(db.session(), datetime.now(UTC) + timedelta(hours=1))
    db.session.commit()
    assert status(email) is S.BOUNCED

    assert client.post("/api/registration", data={"email": email}).status_code == 201

    assert status(email) is S.UNCONFIRMED
    sender.look()
    (text,) = inbox.texts()
    client.post(link_in(text))
    assert status(email) is S.ACTIVE


@pytest.mark.parametrize("left", [S.OPTED_OUT, S.COMPLAINED, S.UNCONFIRMED])
def test_who_left_stays_out_until_the_one_mail_is_confirmed(
    client: FlaskClient, sender: Sender, inbox: Inbox, left: RegistrationStatus
) -> None:
    (email,) = factories.register(status=left)

    for _ in range(5):
        answer = client.post("/api/registration", data={"email": email.upper(), "version": "CALLERS TEXT"})
        assert (answer.status_code, answer.json) == (201, {"productId": str(factories.product_id(email))})
        sender.look()
        (text,) = inbox.texts()
    assert "CALLERS" not in text
    assert status(email) is left

    path = link_in(text)
    client.get(path)
    client.head(path)
    assert status(email) is left
    assert client.post(path, follow_redirects=True).status_code == 200
    assert status(email) is S.ACTIVE


def confirmation_link(email: str, sent_at: datetime) -> str:
    """Let a confirmation mail have been sent to a registration, and return the path of its link."""
    db.session.execute(update(Registration).where(Registration.email == email).values(confirmation_sent_at=sent_at))
    db.session.commit()
    url = services.current().tokens.confirmation_url(factories.product_id(email), sent_at)
    return url.removeprefix("http://127.0.0.1:5000")


def test_a_link_confirms_once_and_a_later_no_holds(client: FlaskClient) -> None:
    (email,) = factories.register(status=S.UNCONFIRMED)
    path = confirmation_link(email, datetime.now(UTC))
    opt_out = services.current().tokens.opt_out_url(factories.product_id(email)).removeprefix("http://127.0.0.1:5000")

    for _ in range(2):
        answer = client.post(path)
        assert (answer.status_code, answer.location) == (303, path)
        assert "Thank you" in client.get(answer.location).text
    assert status(email) is S.ACTIVE
    assert "Thank you" in client.get(path).text
    client.post(opt_out)

    for call in (client.get, client.post):
        answer = call(path, follow_redirects=True)
        assert (answer.status_code, "This link has expired" in answer.text) == (410, True)
    assert status(email) is S.OPTED_OUT


@pytest.mark.parametrize("left", [S.UNCONFIRMED, S.OPTED_OUT, S.COMPLAINED])
def test_a_link_that_was_not_used_is_void_after_an_opt_out(client: FlaskClient, left: RegistrationStatus) -> None:
    (email,) = factories.register(status=left)
    path = confirmation_link(email, datetime.now(UTC))

    client.post(
        services.current().tokens.opt_out_url(factories.product_id(email)).removeprefix("http://127.0.0.1:5000")
    )

    assert client.post(path, follow_redirects=True).status_code == 410
    assert status(email) is not S.ACTIVE


def test_only_the_link_of_the_newest_mail_confirms(client: FlaskClient) -> None:
    (email,) = factories.register(status=S.OPTED_OUT)
    old, new = (confirmation_link(email, datetime.now(UTC) - timedelta(hours=hours)) for hours in (30, 1))

    assert client.post(old, follow_redirects=True).status_code == 410
    assert status(email) is S.OPTED_OUT
    assert client.post(new, follow_redirects=True).status_code == 200
    assert status(email) is S.ACTIVE


def test_the_owner_can_also_say_no_by_the_footer_or_in_the_mail_program(
    client: FlaskClient, sender: Sender, inbox: Inbox
) -> None:
    (email,) = factories.register(status=S.UNCONFIRMED)
    client.post("/api/registration", data={"email": email})
    sender.look()

    (mail,) = inbox.mails()
    link = services.current().tokens.opt_out_url(factories.product_id(email))

    assert mail["List-Unsubscribe"] == f"<{link}>"
    assert f"{STOP}: {link}" in mail.get_body(("plain",)).get_content()
    assert f'href="{link}"' in mail.get_body(("html",)).get_content()
    assert client.post(link.removeprefix("http://127.0.0.1:5000"), follow_redirects=True).status_code == 200
    assert status(email) is S.OPTED_OUT


def test_variations_of_an_address_get_one_mail_a_day_between_them(
    client: FlaskClient, sender: Sender, inbox: Inbox
) -> None:
    for number in range(20):
        email = f"vic.tim+{number}@gmail.com" if number % 2 else f"v.ictim+{number}@googlemail.com"
        factories.register_as(email, status=S.UNCONFIRMED)
        assert client.post("/api/registration", data={"email": email, "version": "7.0.3"}).status_code == 201
    for _ in range(5):
        sender.look()

    assert len(inbox.mails()) == 1


def received(inbox: Inbox, sender: Sender) -> list[tuple[str, str]]:
    """Let the sender do all there is to do; return to which address each mail went, and its subject."""
    work(sender)
    return sorted((mail["To"], mail["Subject"]) for mail in inbox.mails())


@pytest.mark.parametrize("left", [S.OPTED_OUT, S.COMPLAINED, S.BOUNCED, S.ACTIVE])
def test_a_flood_of_variations_of_a_registered_address_brings_its_mailbox_one_mail(
    client: FlaskClient, sender: Sender, inbox: Inbox, left: RegistrationStatus
) -> None:
    factories.register_as("victim@gmail.com", status=left)
    (other,) = factories.register()
    for number in range(40):
        email = ("v.ictim+{}@gmail.com", "victim+{}@gmail.com", "vic.tim+{}@googlemail.com")[number % 3].format(number)
        assert client.post("/api/registration", data={"email": email}).status_code == 201
    factories.start_broadcast("Update now")

    mails = received(inbox, sender)

    variations = [subject for address, subject in mails if address not in ("victim@gmail.com", other)]
    assert variations == [confirmations.compose("").subject]
    assert [address for address, subject in mails if subject == "Update now"] == [
        other,
        *(["victim@gmail.com"] if left is S.ACTIVE else []),
    ]


@pytest.mark.timeout(400)
def test_ten_thousand_variations_bring_one_mail_a_day(sender: Sender, inbox: Inbox) -> None:
    if db.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time, which takes minutes")
    factories.register_as("victim@gmail.com", status=S.OPTED_OUT)
    registrar, begun, threads = services.current().registrar, datetime.now(UTC), 12

    def register(numbers: Iterable[int]) -> None:
        for number in numbers:
            email = f"v.ictim+{number}@gmail.com" if number % 2 else f"victim+{number}@googlemail.com"
            registrar.register(addresses.normalise(email), product_id=uuid.uuid4(), now=begun)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(register, (range(first, 10_000, threads) for first in range(threads))))
    sent = []
    for hours in (0, 1, 25):
        sender.now = lambda hours=hours: begun + timedelta(seconds=5, hours=hours)
        sender.look()
        assert take(sender.now(), limit=1_000) == []
        db.session.commit()
        sent.append(len(inbox.mails()))

    assert sent == [1, 1, 2]
    db.session.rollback()
    waiting = Registration.email_key.like("v%ictim+%") & (Registration.status == S.UNCONFIRMED)
    assert db.session.execute(select(func.count()).where(waiting)).scalar_one() == 10_000


@pytest.mark.parametrize("form", [{}, {"version": "7.0.3"}])
def test_of_the_variations_of_an_unknown_mailbox_the_first_is_active_and_the_rest_bring_one_mail(
    client: FlaskClient, sender: Sender, inbox: Inbox, form: dict[str, str]
) -> None:
    for number in range(40):
        email = f"victim+{number}@example.org"
        answers = [client.post("/api/registration", data={"email": email, **form}) for _ in range(2)]
        assert answers[0].status_code == 201
    factories.start_broadcast("Update now")

    (confirmation, notice) = sorted(received(inbox, sender), key=lambda mail: mail[1])

    assert notice == ("victim+0@example.org", "Update now")
    assert confirmation[1] == confirmations.compose("").subject
    assert status("victim+0@example.org") is S.ACTIVE
    assert {status(f"victim+{number}@example.org") for number in range(1, 40)} == {S.UNCONFIRMED}


def test_the_owner_of_a_variation_gets_its_notices_after_a_click(
    client: FlaskClient, sender: Sender, inbox: Inbox
) -> None:
    factories.register_as("ann@example.org")
    client.post("/api/registration", data={"email": "ann+clinic@example.org"})
    sender.look()

    (text,) = inbox.texts()
    client.post(link_in(text))

    assert status("ann+clinic@example.org") is S.ACTIVE


def test_a_mailbox_gets_another_mail_the_next_day() -> None:
    now = datetime.now(UTC)
    for hours, expected in ((0, 1), (23, 0), (25, 1)):
        email = f"ann+{hours}@gmail.com"
        factories.register_as(email, status=S.UNCONFIRMED)
        with db.engines[AUTOCOMMIT].connect() as connection:
            confirmations.request(connection, email, now)
        taken = take(now + timedelta(hours=hours))
        db.session.commit()
        assert len(taken) == expected


def ask_for_mails(moments: dict[str, datetime]) -> None:
    with db.engines[AUTOCOMMIT].connect() as connection:
        for email, moment in moments.items():
            confirmations.request(connection, email, moment)


def test_a_mail_that_is_put_off_keeps_no_other_mailbox_from_its_own() -> None:
    now = datetime.now(UTC)
    emails = [f"{name}+{number}@example.org" for number in range(2) for name in ("ann", "bob", "eve")]
    factories.register_as(*emails, status=S.UNCONFIRMED)
    ask_for_mails(dict.fromkeys(emails, now))
    taken = []
    for hours in (0, 25, 50):
        taken.append(len(take(now + timedelta(hours=hours))))
        db.session.commit()

    assert taken == [3, 3, 0]


def test_the_mail_that_has_been_due_the_longest_is_the_first() -> None:
    now = datetime.now(UTC)
    one, two, three = factories.register(3, status=S.UNCONFIRMED)
    ask_for_mails({one: now + timedelta(minutes=2), two: now, three: now + timedelta(minutes=1)})
    taken = []
    for _ in range(3):
        taken += [confirmation.email for confirmation in take(now + timedelta(hours=1), limit=1)]
        db.session.commit()

    assert taken == [two, three, one]


def test_the_mail_to_a_second_address_of_a_mailbox_comes_a_day_later_and_that_of_a_third_never(
    client: FlaskClient, sender: Sender, inbox: Inbox
) -> None:
    factories.register_as("ann@example.org")
    begun = datetime.now(UTC)
    for number in range(30):
        client.post("/api/registration", data={"email": f"ann+{number}@example.org"})
    sent = []
    for hours in (0, 0, 0, 0, 23, 24.1, 24.1, 25, 49, 73, 97):
        sender.now = lambda hours=hours: begun + timedelta(seconds=5, hours=hours)
        sender.look()
        sent.append(len(inbox.mails()))
        inbox.empty()

    assert sent == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]


def erase(client: FlaskClient, email: str) -> None:
    link = services.current().tokens.opt_out_url(factories.product_id(email))
    assert client.post(f"{link.removeprefix('http://127.0.0.1:5000')}/erase", follow_redirects=True).status_code == 200


@pytest.mark.parametrize("form", [{}, {"version": "7.0.3"}])
def test_an_erased_address_that_is_registered_again_waits_for_its_owner(
    client: FlaskClient, sender: Sender, inbox: Inbox, form: dict[str, str]
) -> None:
    (email, other) = factories.register(2)
    erase(client, email)

    assert client.post("/api/registration", data={"email": email.title(), **form}).status_code == 201

    assert status(email.title()) is S.UNCONFIRMED
    sender.look()
    (text,) = inbox.texts()
    factories.start_broadcast("Update now")
    assert [address for address, subject in received(inbox, sender) if subject == "Update now"] == [other]
    client.post(link_in(text))
    assert status(email.title()) is S.ACTIVE


def test_a_variation_of_an_erased_address_waits_for_its_owner(client: FlaskClient) -> None:
    factories.register_as("ann@example.org")
    erase(client, "ann@example.org")

    assert client.post("/api/registration", data={"email": "ann+clinic@example.org"}).status_code == 201

    assert status("ann+clinic@example.org") is S.UNCONFIRMED


def test_an_erasure_brings_no_second_mail_on_one_day_and_keeps_no_address(
    client: FlaskClient, sender: Sender, inbox: Inbox
) -> None:
    factories.register_as("ann@example.org")
    sent, begun = [], datetime.now(UTC)
    for hours in (0, 1, 23, 25):
        client.post("/api/registration", data={"email": "ann+clinic@example.org"})
        sender.now = lambda hours=hours: begun + timedelta(seconds=5, hours=hours)
        sender.look()
        sent.append(len(inbox.mails()))
        inbox.empty()
        erase(client, "ann+clinic@example.org")
        (remembered,) = db.session.execute(select(ConfirmationMail)).scalars()
        assert re.fullmatch("[0-9a-f]{64}", remembered.mailbox)
        assert remembered.next_id is None
        db.session.rollback()

    assert sent == [1, 0, 0, 1]


def test_a_new_key_for_tokens_does_not_bring_a_second_mail() -> None:
    old = Tokens(["the old key"], "https://reg.example.org")
    new = Tokens(["the old key", "the new key"], "https://reg.example.org")
    now, taken = datetime.now(UTC), []
    for tokens in (old, new):
        factories.register_as(email := f"ann+{len(taken)}@example.org", status=S.UNCONFIRMED)
        with db.engines[AUTOCOMMIT].connect() as connection:
            confirmations.request(connection, email, now)
        taken.append(len(confirmations.take(db.session(), now, tokens=tokens, limit=10)))
        db.session.commit()

    assert taken == [1, 0]


def test_who_is_not_asked_after_all_uses_up_no_day(client: FlaskClient, sender: Sender, inbox: Inbox) -> None:
    factories.register_as("ann@example.org", "ann+1@example.org", "ann+2@example.org", status=S.OPTED_OUT)
    client.post("/api/registration", data={"email": "ann+1@example.org"})
    db.session.execute(update(Registration).where(Registration.email == "ann+1@example.org").values(status=S.ACTIVE))
    db.session.commit()
    client.post("/api/registration", data={"email": "ann+2@example.org"})

    sender.look()

    assert len(inbox.mails()) == 1


def link_in(text: str) -> str:
    """Return the path of the link in a confirmation mail."""
    return re.search(r"http://127.0.0.1:5000(/confirm/\S+)", text)[1]


@pytest.mark.parametrize(
    ("variation", "plain"), [("ann+1@example.org", "ann@example.org"), ("v.ic@gmail.com", "vic@gmail.com")]
)
@pytest.mark.parametrize("said", [S.OPTED_OUT, S.ACTIVE])
def test_nobody_subscribes_a_known_mailbox_by_its_plain_address(
    client: FlaskClient, sender: Sender, inbox: Inbox, variation: str, plain: str, said: RegistrationStatus
) -> None:
    client.post("/api/registration", data={"email": variation})
    db.session.execute(update(Registration).values(status=said))
    db.session.commit()

    assert client.post("/api/registration", data={"email": plain}).status_code == 201

    assert status(plain) is S.UNCONFIRMED
    sender.look()
    (mail,) = inbox.mails()
    assert mail["To"] == plain
    client.post(link_in(inbox.texts()[0]))
    assert status(plain) is S.ACTIVE


def test_a_link_works_until_a_newer_one_has_left(
    client: FlaskClient, sender: Sender, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    (email,) = factories.register(status=S.OPTED_OUT)
    client.post("/api/registration", data={"email": email})
    sender.look()
    db.session.execute(update(ConfirmationMail).values(sent_at=datetime.now(UTC) - timedelta(days=2)))
    earlier = db.session.execute(select(Registration.confirmation_sent_at)).scalar_one() - timedelta(days=2)
    db.session.execute(update(Registration).values(confirmation_sent_at=earlier))
    db.session.commit()

    client.post("/api/registration", data={"email": email})
    monkeypatch.setattr(sender.mailer, "send", lambda *_: [Outcome(Verdict.HELD)])
    sender.look()

    assert db.session.execute(select(Registration.confirmation_sent_at)).scalar_one() == earlier
    url = services.current().tokens.confirmation_url(factories.product_id(email), earlier)
    assert client.post(url.removeprefix("http://127.0.0.1:5000"), follow_redirects=True).status_code == 200
    assert status(email) is S.ACTIVE


def test_who_opts_out_leaves_the_next_mail_of_the_mailbox_to_another(
    client: FlaskClient, sender: Sender, inbox: Inbox
) -> None:
    emails = [f"ann+{letter}@example.org" for letter in "xyz"]
    factories.register_as(*emails, status=S.UNCONFIRMED)
    for email in emails[:2]:
        client.post("/api/registration", data={"email": email})
        sender.look()
    link = services.current().tokens.opt_out_url(factories.product_id(emails[1]))
    client.post(link.removeprefix("http://127.0.0.1:5000"))
    client.post("/api/registration", data={"email": emails[2]})
    sender.look()

    begun = datetime.now(UTC)
    sender.now = lambda: begun + timedelta(days=2)
    sender.look()

    assert sorted(mail["To"] for mail in inbox.mails()) == [emails[0], emails[2]]


@pytest.mark.parametrize("comes_back_by", ["confirming", "undoing"])
def test_who_shows_that_mail_arrives_begins_anew_with_soft_bounces(
    client: FlaskClient, sender: Sender, inbox: Inbox, comes_back_by: str
) -> None:
    (email, other) = factories.register(2, status=S.OPTED_OUT)
    ids = db.session.execute(select(Registration.id).order_by(Registration.id)).scalars().all()
    rows = [{"registration_id": each, "broadcast_id": number} for each in ids for number in range(5)]
    db.session.execute(insert(SoftBounce), rows)
    db.session.commit()

    if comes_back_by == "confirming":
        client.post("/api/registration", data={"email": email})
        sender.look()
        client.post(link_in(inbox.texts()[0]))
    else:
        link = services.current().tokens.opt_out_url(factories.product_id(email))
        client.post(f"{link}/undo".removeprefix("http://127.0.0.1:5000"))

    assert (status(email), status(other)) == (S.ACTIVE, S.OPTED_OUT)
    assert db.session.execute(select(SoftBounce.registration_id)).scalars().all() == [ids[1]] * 5


def test_an_address_is_asked_once_a_day_at_most() -> None:
    factories.register(status=S.OPTED_OUT)
    key = db.session.execute(select(Registration.email_key)).scalar_one()
    now = datetime(2026, 11, 24, 12, tzinfo=UTC)
    taken = []
    for hour in range(50):
        moment = now + timedelta(hours=hour)
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            confirmations.request(connection, key, moment)
            confirmations.request(connection, key, moment)
        taken += [hour for _ in take(moment)]
        db.session.commit()

    assert taken == [0, 24, 48]


def test_who_opts_out_or_complains_gets_no_confirmation_mail_that_is_still_due(
    client: FlaskClient, sender: Sender, inbox: Inbox
) -> None:
    opts_out, complains = factories.register(2, status=S.UNCONFIRMED)
    for email in (opts_out, complains):
        client.post("/api/registration", data={"email": email})
    link = services.current().tokens.opt_out_url(factories.product_id(opts_out))
    client.post(link.removeprefix("http://127.0.0.1:5000"))
    feedback.take(db.session(), [ses_events.complaint(0, address=complains)], datetime.now(UTC))
    db.session.commit()

    sender.look()

    assert [status(email) for email in (opts_out, complains)] == [S.OPTED_OUT, S.COMPLAINED]
    assert inbox.mails() == []


def test_an_opt_out_waits_for_nobody_elses_confirmation_mail(client: FlaskClient) -> None:
    if db.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    asked, opts_out = factories.register(2, status=S.UNCONFIRMED)
    client.post("/api/registration", data={"email": asked})
    link = services.current().tokens.opt_out_url(factories.product_id(opts_out))
    db.session.rollback()
    with sessionmaker(db.engine).begin() as other:
        confirmations.take(other, datetime.now(UTC), tokens=services.current().tokens, limit=10)
        answer = client.post(link.removeprefix("http://127.0.0.1:5000"))

    assert (answer.status_code, status(opts_out)) == (200, S.OPTED_OUT)


def test_two_senders_take_different_mails_and_neither_waits() -> None:
    if db.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    emails = factories.register(3, status=S.UNCONFIRMED)
    ask_for_mails(dict.fromkeys(emails, NOW))
    taken = []
    with Session(db.engine) as one, Session(db.engine) as other:
        other.execute(text("SET innodb_lock_wait_timeout = 1"))
        for session, limit in ((one, 2), (other, 2)):
            taken += confirmations.take(session, NOW, tokens=services.current().tokens, limit=limit)

    assert sorted(confirmation.email for confirmation in taken) == sorted(emails)


def test_of_two_senders_that_take_variations_of_a_mailbox_at_once_one_puts_its_mail_off(
    application: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    if db.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    emails = ["ann+one@example.org", "ann+two@example.org"]
    factories.register_as(*emails, status=S.UNCONFIRMED)
    ask_for_mails(dict.fromkeys(emails, NOW))
    together, insert_into = threading.Barrier(2), confirmations.insert

    def insert_at_once(table: type[Base]) -> Insert:
        if table is ConfirmationMail:
            together.wait(30)
        return insert_into(table)

    def take_one(_: int) -> int:
        with application.app_context():
            taken = take(NOW, limit=1)
            db.session.commit()
            return len(taken)

    monkeypatch.setattr(confirmations, "insert", insert_at_once)
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(take_one, range(2))) == [0, 1]


def test_who_opts_out_while_the_mails_are_taken_gets_none(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    (email,) = factories.register(status=S.UNCONFIRMED)
    client.post("/api/registration", data={"email": email})
    monkeypatch.setattr(confirmations, "rows_matched", lambda *_: 0)  # an opt-out has deleted it since it was read

    assert take(datetime.now(UTC)) == []
    assert db.session.execute(select(Registration.confirmation_sent_at)).scalar_one() is None


def test_nobody_is_asked_who_opted_out_of_nothing(client: FlaskClient, sender: Sender, inbox: Inbox) -> None:
    (email,) = factories.register(status=S.OPTED_OUT)
    client.post("/api/registration", data={"email": email})
    db.session.execute(update(Registration).values(status=S.ACTIVE))
    db.session.commit()

    sender.look()

    assert inbox.mails() == []


class TestWithConfirmation:
    @pytest.fixture
    def settings(self, settings: dict[str, str]) -> dict[str, str]:
        return settings | {"CONFIRM_REGISTRATIONS": "true"}

    def test_a_new_registration_waits_for_its_confirmation_and_the_count_tells_both(
        self,
        client: FlaskClient,
        sender: Sender,
        inbox: Inbox,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(counting, "CONFIRMED_SECONDS", 0.0)
        factories.register(2)
        assert client.post("/api/registration", data={"email": "ann@example.org"}).status_code == 201

        assert status("ann@example.org") is S.UNCONFIRMED
        assert client.get("/api/registration/unique").json == {"count": 3, "confirmed": 2}
        sender.look()
        (text,) = inbox.texts()
        client.post(link_in(text))
        assert client.get("/api/registration/unique").json == {"count": 3, "confirmed": 3}


def test_who_waits_for_another_mailbox_takes_nobodys_place(application: Flask) -> None:
    emails = ["ann+1@example.org", "ann+2@example.org", "ann+3@example.org", "bob@example.org"]
    with application.app_context():
        factories.register_as(*emails, status=S.UNCONFIRMED)

        def ask(email: str, now: datetime = NOW) -> None:
            with db.engines[AUTOCOMMIT].connect() as connection:
                confirmations.request(connection, email, now)

        def take() -> None:
            confirmations.take(db.session(), NOW, tokens=services.current().tokens, limit=10)
            db.session.commit()

        for email in emails[:2]:
            ask(email)
            take()
        consent.opt_out(db.session(), addresses.normalise(emails[1]))
        db.session.commit()
        ask(emails[3], NOW + timedelta(minutes=1))
        ask(emails[2])
        take()

        those = Registration.id.in_(select(ConfirmationRequest.registration_id))
        waiting = select(Registration.email).where(those).order_by(Registration.id)
        assert db.session.execute(waiting).scalars().all() == emails[2:]
