"""Which domains an address may be at."""

from __future__ import annotations

from typing import Any

import dns.message
import pytest
from dns.exception import Timeout
from dns.resolver import NXDOMAIN, NoAnswer, NoNameservers
from flask.testing import FlaskClient

from registration import addresses, domains
from registration.domains import Domains, MailServers
from registration.errors import InvalidEmailException


class Resolver:
    """Gives one answer to every question, and counts the questions."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def resolve(self, name: str, kind: str, *, lifetime: float) -> Any:
        assert (kind, lifetime) == ("MX", domains.DNS_SECONDS)
        self.asked.append(name)
        if isinstance(self.answer, Exception):
            raise self.answer
        return dns.message.from_text(
            f"id 1\nflags QR\n;QUESTION\na. IN MX\n;ANSWER\na. 60 IN MX {self.answer}\n"
        ).answer[0]


def check(email: str, *, reserved: bool = False, disposable: bool = False, resolver: Any = None) -> None:
    servers = MailServers(resolver) if resolver else None
    rules = Domains(allow_reserved=reserved, allow_disposable=disposable, mail_servers=servers)
    rules.check(addresses.Address(email, email.lower()))


@pytest.mark.parametrize(
    "domain", ["example.com", "Mail.Example.ORG", "example.net", "a.test", "x.invalid", "b.example"]
)
def test_a_domain_reserved_for_examples_is_refused_unless_allowed(domain: str) -> None:
    with pytest.raises(InvalidEmailException, match="reserved"):
        check(f"ann@{domain}")
    check(f"ann@{domain}", reserved=True)


@pytest.mark.parametrize("domain", ["mailinator.com", "MAILINATOR.com", "x.mailinator.com"])
def test_a_throw_away_mailbox_is_refused_unless_allowed(domain: str) -> None:
    with pytest.raises(InvalidEmailException, match="throw-away"):
        check(f"ann@{domain}")
    check(f"ann@{domain}", disposable=True)


@pytest.mark.parametrize("domain", ["gmail.com", "open-emr.org", "notexample.com", "example.com.br", "test.de"])
def test_any_other_domain_is_taken(domain: str) -> None:
    check(f"ann@{domain}")


@pytest.mark.parametrize("answer", [NXDOMAIN(), "0 ."])
def test_a_domain_that_is_not_there_or_takes_no_mail_is_refused(answer: Any) -> None:
    with pytest.raises(InvalidEmailException, match="does not take mail"):
        check("ann@open-emr.org", resolver=Resolver(answer))


@pytest.mark.parametrize("answer", ["10 mx.open-emr.org.", NoAnswer(), Timeout(), NoNameservers(), OSError()])
def test_a_mail_server_or_no_answer_is_a_yes(answer: Any) -> None:
    check("ann@open-emr.org", resolver=Resolver(answer))


def test_an_answer_is_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domains, "MOST_REMEMBERED", 2)
    resolver = Resolver("10 mx.open-emr.org.")
    servers = MailServers(resolver)  # type: ignore[arg-type]

    for domain in ("a.org", "a.org", "b.org", "c.org", "b.org", "a.org"):
        assert servers.may_take_mail(domain)

    assert resolver.asked == ["a.org.", "b.org.", "c.org.", "a.org."]


def test_the_service_refuses_a_throw_away_mailbox(client: FlaskClient) -> None:
    answer = client.post("/api/registration", data={"email": "ann@mailinator.com"})

    assert answer.status_code == 400
    assert answer.json is not None
    assert answer.json["title"] == "InvalidEmailException"
