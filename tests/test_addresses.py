"""Which e-mail addresses are taken, and when two of them are the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registration.addresses import LONGEST_ADDRESS, LONGEST_LOCAL_PART, Address, mailbox, normalise
from registration.errors import InvalidEmailException

ATOMS = st.text("abcXYZ019!#$%&'*+-/=?^_`{|}~", min_size=1, max_size=12)
LOCAL_PARTS = st.lists(ATOMS, min_size=1, max_size=4).map(".".join).filter(lambda text: "=?" not in text)
LABELS = st.text("abcXYZ019\u00e9\u00fc\u044f\u5927", min_size=1, max_size=12)
DOMAINS = st.builds(
    "{}.{}".format, st.lists(LABELS, min_size=1, max_size=3).map(".".join), st.sampled_from(["org", "De"])
)
ADDRESSES = st.builds("{}@{}".format, LOCAL_PARTS, DOMAINS)
ANY_TEXT = st.text(st.characters(codec=None))
LIKE_ADDRESSES = st.one_of(
    ANY_TEXT, st.emails(), ADDRESSES, st.builds("{}@{}".format, ANY_TEXT, DOMAINS), st.builds("a@{}".format, ANY_TEXT)
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("Ann@Example.org", Address("Ann@Example.org", "ann@example.org")),
        (" \tann@example.org\r\n", Address("ann@example.org", "ann@example.org")),
        ("ann+x'y@example.org", Address("ann+x'y@example.org", "ann+x'y@example.org")),
        ("ann@B\u00fccher.example.org", Address("ann@xn--bcher-kva.example.org", "ann@xn--bcher-kva.example.org")),
        ("Ann@\u4f8b\u3048.\u30c6\u30b9\u30c8", Address("Ann@xn--r8jz45g.xn--zckzah", "ann@xn--r8jz45g.xn--zckzah")),
        (f"{'a' * 64}@example.org", Address(f"{'a' * 64}@example.org", f"{'a' * 64}@example.org")),
    ],
)
def test_an_address_is_stored_as_typed_and_its_domain_as_punycode(text: str, address: Address) -> None:
    assert normalise(text) == address


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is needed"),
        (" \n", "is needed"),
        ("nobody", "must have an @-sign"),
        ("a@b@example.org", "not valid"),
        ("@example.org", "not valid"),
        ("ann@", "not valid"),
        ("ann@example", "not valid"),
        ("ann@localhost", "not valid"),
        ("ann@[192.0.2.1]", "not valid"),
        ("ann@exam ple.org", "not valid"),
        ("ann\n@example.org", "not valid"),
        ("ann\x00@example.org", "not valid"),
        ("ann..x@example.org", "not valid"),
        (".ann@example.org", "not valid"),
        ('"ann smith"@example.org', "not valid"),
        ("Ann <ann@example.org>", "not valid"),
        ("ann@example.org, bob@example.org", "not valid"),
        ("ann@-example.org", "not valid"),
        ("jos\u00e9@example.org", "not valid"),
        ("\u0430nn@example.org", "not valid"),
        ("a\ufb01x@example.org", "not valid"),
        ("ann\uff20example.org", "not valid"),
        ("=?utf-8?q?bob?=@example.org", "=\\?"),
        ("ann.=?utf-8?q?a=0Ab?=@example.org", "=\\?"),
    ],
)
def test_what_ses_cannot_mail_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidEmailException, match=reason):
        normalise(text)


def test_what_was_registered_before_it_was_refused_can_still_be_named() -> None:
    assert normalise("=?utf-8?q?Bob?=@example.org", is_new=False).key == "=?utf-8?q?bob?=@example.org"


def test_an_address_of_254_characters_is_taken_and_a_longer_one_refused() -> None:
    longest = f"{'a' * 50}@{'.'.join(['b' * 63, 'c' * 63, 'd' * 63])}.{'e' * 11}"
    assert len(longest) == LONGEST_ADDRESS
    assert normalise(longest).stored == longest

    with pytest.raises(InvalidEmailException, match="longer than 254"):
        normalise(f"a{longest}")


def test_a_local_part_of_64_characters_is_taken_and_a_longer_one_refused() -> None:
    assert normalise(f"{'a' * LONGEST_LOCAL_PART}@example.org").stored.startswith("a" * 64 + "@")

    for address in (f"{'a' * 65}@example.org", f"ann+{'x' * 61}@example.org"):
        with pytest.raises(InvalidEmailException, match="more than 64 characters before the @-sign"):
            normalise(address)


def test_an_address_that_only_punycode_makes_too_long_is_refused() -> None:
    domain = ".".join("\u00fc\u044f\u5927" * 9 for _ in range(6))
    assert len(f"ann@{domain}.org") <= LONGEST_ADDRESS

    with pytest.raises(InvalidEmailException):
        normalise(f"ann@{domain}.org")


@given(LIKE_ADDRESSES)
@settings(deadline=None)
def test_any_text_is_an_address_that_ses_can_mail_or_refused_with_our_own_error(text: str) -> None:
    try:
        address = normalise(text)
    except InvalidEmailException:
        return
    assert address.stored.isascii()
    assert address.stored.isprintable()
    assert not any(character.isspace() for character in address.stored)
    assert address.stored.count("@") == 1
    assert len(address.stored) <= LONGEST_ADDRESS


@given(ADDRESSES)
@settings(deadline=None)
def test_what_was_stored_is_an_address_that_stays_as_it_is(text: str) -> None:
    try:
        address = normalise(text)
    except InvalidEmailException:
        return
    assert normalise(address.stored) == address


@given(ADDRESSES)
@settings(deadline=None)
def test_case_and_white_space_do_not_make_another_address(text: str) -> None:
    try:
        key = normalise(text).key
    except InvalidEmailException:
        return
    for spelling in (text.swapcase(), text.upper(), text.lower(), f" {text}\n"):
        assert normalise(spelling).key == key


@given(ADDRESSES, ADDRESSES)
@settings(deadline=None)
def test_different_local_parts_are_different_addresses(one: str, other: str) -> None:
    try:
        keys = {normalise(one).key, normalise(other).key}
    except InvalidEmailException:
        return
    same = one.partition("@")[0].lower() == other.partition("@")[0].lower()
    assert same or len(keys) == 2


@given(LOCAL_PARTS)
@settings(deadline=None)
def test_an_ordinary_address_is_taken(local_part: str) -> None:
    assert normalise(f"{local_part}@example.org").stored == f"{local_part}@example.org"


@pytest.mark.parametrize(
    ("email", "where"),
    [
        ("Ann@Open-EMR.org", "ann@open-emr.org"),
        ("ann+a+b@open-emr.org", "ann@open-emr.org"),
        ("a.n.n@open-emr.org", "a.n.n@open-emr.org"),
        ("a.n.n+x.y@gmail.com", "ann@gmail.com"),
        ("Ann@GoogleMail.com", "ann@gmail.com"),
        ("+x@open-emr.org", "+x@open-emr.org"),
    ],
)
def test_variations_of_an_address_are_one_mailbox(email: str, where: str) -> None:
    assert mailbox(normalise(email).key) == where


def test_ten_thousand_variations_of_a_victims_address_are_one_mailbox() -> None:
    dotted = ["v" + "".join(f".{c}" if n >> i & 1 else c for i, c in enumerate("ictimname")) for n in range(500)]
    variations = {f"{local}+{tag}@gmail.com" for local in dotted for tag in range(20)}

    assert len(variations) == 10_000
    assert {mailbox(normalise(email).key) for email in variations} == {"victimname@gmail.com"}
