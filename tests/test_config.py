"""The settings: what is taken, and what is refused with which words."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import URL, make_url

import config
from config import DEVELOPMENT_PIN, SHORTEST_PIN, ConfigurationError

from . import factories

COMPLETE = {
    "DB_CONN_STR": "mysql+pymysql://user:password@host/registration",
    "SECRET_PIN": "correct horse",
    "PUBLIC_URL": "https://reg.example.org",
    "TOKEN_KEYS": "a key of at least thirty-two characters",
    "SES_REGION": "us-east-1",
    "SES_SENDER": "security@example.org",
}


def problems(environment: dict[str, str], *, development: bool | None = None) -> list[str]:
    """Return what is wrong with settings, one sentence each."""
    with pytest.raises(ConfigurationError) as caught:
        config.read(environment, development=development)
    head, *lines = str(caught.value).splitlines()
    assert head == "The service cannot start. Set these environment variables:"
    assert all(line.startswith("- ") for line in lines)
    return [line.removeprefix("- ") for line in lines]


def test_what_is_required_is_enough_and_the_rest_has_its_default() -> None:
    taken = config.read(COMPLETE)

    defaults = {declared.name: declared.default for declared in dataclasses.fields(config.Config)}
    assert dataclasses.asdict(taken) == defaults | COMPLETE


def test_values_are_read_as_their_types_without_white_space_around_them() -> None:
    taken = config.read(
        COMPLETE
        | {"SENDING_RATE": " 12.5 ", "IP_RETENTION_DAYS": "7\n", "TRUSTED_PROXIES": "2", "SES_SENDER": " a@b.org "}
        | {"BROADCAST_WAIT_SECONDS": "0", "MAILER": "ses", "DEVELOPMENT": "no", "PORT": " "}
    )

    assert (taken.SENDING_RATE, taken.IP_RETENTION_DAYS, taken.TRUSTED_PROXIES) == (12.5, 7, 2)
    assert (taken.SES_SENDER, taken.BROADCAST_WAIT_SECONDS, taken.PORT) == ("a@b.org", 0.0, 5000)
    assert taken.DEVELOPMENT is False


def test_the_process_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (COMPLETE | {"PORT": "5001"}).items():
        monkeypatch.setenv(name, value)

    assert config.read().PORT == 5001


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.read(COMPLETE).PORT = 1  # type: ignore[misc]


def test_everything_that_is_missing_is_named_in_one_message() -> None:
    found = problems({})

    assert [sentence.split(" is missing. ")[0] for sentence in found] == list(COMPLETE)
    assert all(sentence.endswith(".") for sentence in found)


def test_without_ses_its_region_is_not_required() -> None:
    found = problems({"MAILER": "outbox"})

    assert [sentence.split(" ")[0] for sentence in found] == [name for name in COMPLETE if name != "SES_REGION"]


def test_everything_that_is_wrong_is_named_in_one_message_and_each_once() -> None:
    found = problems(
        {
            "DB_CONN_STR": "postgresql://host/registration",
            "SECRET_PIN": "short",
            "PUBLIC_URL": "http://reg.example.org",
            "TOKEN_KEYS": "a key of at least thirty-two characters, short",
            "MAILER": "pigeon",
            "SENDING_RATE": "fast",
            "IP_RETENTION_DAYS": "1.5",
            "TRUSTED_PROXIES": "-1",
            "DEVELOPMENT": "perhaps",
            "AWS_ACCESS_ID": "AKIA",
        }
    )

    assert sorted(found) == [
        "AWS_ACCESS_ID and AWS_SECRET_KEY go together: set both or neither.",
        "DB_CONN_STR must begin with mysql+pymysql:// or sqlite:///.",
        "DEVELOPMENT must be true or false.",
        "IP_RETENTION_DAYS must be a whole number.",
        "MAILER must be one of: ses, outbox.",
        "PUBLIC_URL must begin with https://.",
        "SECRET_PIN must have at least 8 characters.",
        "SENDING_RATE must be a number.",
        "SES_SENDER is missing. From address of every mail; SES must have verified it or its domain.",
        "TOKEN_KEYS must hold keys of at least 32 characters, with commas between them.",
        "TRUSTED_PROXIES must be 0 or more.",
    ]


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("SENDING_RATE", "-0.1", "must be 0 or more."),
        ("SENDING_RATE", "inf", "must be 0 or more."),
        ("SENDING_RATE", "nan", "must be 0 or more."),
        ("BROADCAST_WAIT_SECONDS", "-1", "must be 0 to 50."),
        ("BROADCAST_WAIT_SECONDS", "51", "must be 0 to 50."),
        ("IP_RETENTION_DAYS", "-1", "must be 0 to 36500."),
        ("SES_SENDER", "security", "must be an e-mail address."),
        ("IP_RETENTION_DAYS", "a month", "must be a whole number."),
        ("TRUSTED_PROXIES", "1.0", "must be a whole number."),
        ("PORT", "0", "must be 1 to 65535."),
        ("PORT", "70000", "must be 1 to 65535."),
        ("PORT", "http", "must be a whole number."),
        ("MAILER", "SES", "must be one of: ses, outbox."),
        ("DEVELOPMENT", "2", "must be true or false."),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_bounds_is_refused(name: str, value: str, problem: str) -> None:
    assert problems(COMPLETE | {name: value}) == [f"{name} {problem}"]


@pytest.mark.parametrize("keys", [config.DEVELOPMENT_KEY, f"{COMPLETE['TOKEN_KEYS']}, {config.DEVELOPMENT_KEY}"])
def test_production_signs_nothing_with_the_key_that_everybody_can_read(keys: str) -> None:
    assert problems(COMPLETE | {"TOKEN_KEYS": keys}) == [
        "TOKEN_KEYS holds the development key, which everybody can read. Choose another."
    ]


@pytest.mark.parametrize("other", ["AWS_ACCESS_ID", "AWS_SECRET_KEY"])
def test_an_access_key_without_its_other_half_is_refused(other: str) -> None:
    assert problems(COMPLETE | {other: "x"}) == ["AWS_ACCESS_ID and AWS_SECRET_KEY go together: set both or neither."]
    assert config.read(COMPLETE | {"AWS_ACCESS_ID": "x", "AWS_SECRET_KEY": "y"}).AWS_ACCESS_ID == "x"


@pytest.mark.parametrize("pin", ["x" * (SHORTEST_PIN - 1), f" {'x' * (SHORTEST_PIN - 1)} ", "1", DEVELOPMENT_PIN])
def test_a_pin_that_is_too_short_or_known_to_everybody_is_refused_in_production(pin: str) -> None:
    (problem,) = problems(COMPLETE | {"SECRET_PIN": pin})

    assert problem.startswith("SECRET_PIN ")
    in_development = config.read(COMPLETE | {"SECRET_PIN": pin}, development=True)
    assert pin.strip() == in_development.SECRET_PIN


def test_the_shortest_pin_is_taken() -> None:
    assert config.read(COMPLETE | {"SECRET_PIN": "x" * SHORTEST_PIN}).SECRET_PIN == "x" * SHORTEST_PIN


def test_a_message_about_problems_holds_no_secret() -> None:
    secret = "hunter2"
    found = problems(
        {"DB_CONN_STR": f"postgresql://user:{secret}@host:x/", "SECRET_PIN": secret, "AWS_SECRET_KEY": secret}
        | {"PUBLIC_URL": f"https://:{secret}@", "TOKEN_KEYS": secret}
    )

    assert len(found) == 7
    assert secret not in " ".join(found)


@pytest.mark.parametrize("word", ["true", "TRUE", "1", "yes", "on"])
def test_development_needs_no_settings(word: str) -> None:
    by_variable, by_argument = config.read({"DEVELOPMENT": word}), config.read({}, development=True)

    assert by_variable == by_argument
    assert by_variable.DEVELOPMENT is True
    assert (by_variable.SECRET_PIN, by_variable.MAILER) == (DEVELOPMENT_PIN, "outbox")
    assert by_variable.DB_CONN_STR.startswith("sqlite:///")


@pytest.mark.parametrize("word", ["false", "False", "0", "no", "off", ""])
def test_development_is_off_unless_it_is_asked_for(word: str) -> None:
    assert config.read(COMPLETE | {"DEVELOPMENT": word}).DEVELOPMENT is False


def test_the_argument_overrides_the_variable() -> None:
    assert config.read({"DEVELOPMENT": "false"}, development=True).DEVELOPMENT is True
    assert config.read(COMPLETE | {"DEVELOPMENT": "true"}, development=False).DEVELOPMENT is False


def test_a_setting_overrides_a_development_default_and_is_checked_all_the_same() -> None:
    assert config.read({"PORT": "5001", "MAILER": "ses"}, development=True).MAILER == "ses"
    assert problems({"PORT": "x"}, development=True) == ["PORT must be a whole number."]


@pytest.mark.parametrize("driver", ["mysql", "mariadb", "mariadb+pymysql", "mysql+pymysql"])
def test_every_spelling_of_mysql_means_pymysql(driver: str) -> None:
    url = f"{driver}://user:password@host:3307/registration?ssl_ca=/etc/ca.pem"

    assert make_url(config.read(COMPLETE | {"DB_CONN_STR": url}).DB_CONN_STR) == URL.create(
        "mysql+pymysql", "user", "password", "host", 3307, "registration", query={"ssl_ca": "/etc/ca.pem"}
    )


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@settings(deadline=None)
def test_any_password_survives(password: str) -> None:
    url = URL.create("mysql", "user", password, "host", database="registration").render_as_string(hide_password=False)

    read = make_url(config.read(COMPLETE | {"DB_CONN_STR": url}).DB_CONN_STR)

    assert (read.drivername, read.password, read.host) == ("mysql+pymysql", password, "host")


@pytest.mark.parametrize(
    "url",
    [
        "localhost",
        "mysql",
        "postgresql://host/registration",
        "mysql+mysqldb://host/registration",
        "mysql://user:password@host:port/registration",
        "mysql://user:password@host",
        "sqlite://",
    ],
)
def test_what_is_no_url_of_a_supported_database_is_refused(url: str) -> None:
    (problem,) = problems(COMPLETE | {"DB_CONN_STR": url})

    assert problem.startswith("DB_CONN_STR must ")


def test_sqlite_is_a_database_too(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/registration.db"

    taken = config.read(COMPLETE | {"DB_CONN_STR": url})

    assert url == taken.DB_CONN_STR


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SES_REPLY_TO", "nobody"),
        ("SES_SENDER_NAME", "x" * 61),
        ("SES_SENDER_NAME", "The board\r\nBcc: x@example.org"),
        ("POSTAL_ADDRESS", "x" * 257),
        ("POSTAL_ADDRESS", "1 Main Street\nSpringfield"),
    ],
)
def test_what_goes_into_every_mail_is_checked(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        config.read({name: text}, development=True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        *(
            ({"RATE_LIMIT_STORAGE": url}, "RATE_LIMIT_STORAGE must be a URL such as redis://host:6379/1")
            for url in ("memcached://host", "redis://", "redis://host:abc", "redis://host:0", "redis://host:1/one")
        ),
        ({"FEEDBACK_QUEUE_URL": "registration-feedback"}, "FEEDBACK_QUEUE_URL must be the URL of a queue"),
        (
            {"FEEDBACK_QUEUE_URL": "https://sqs", "SES_REGION": "", "MAILER": "outbox"},
            "FEEDBACK_QUEUE_URL needs SES_REGION",
        ),
        ({"CIRCUIT_BREAKER_SAMPLE": "-1"}, "CIRCUIT_BREAKER_SAMPLE must be 0 or more."),
    ],
)
def test_feedback_needs_a_queue_that_can_be_one(changes: dict[str, str], sentence: str) -> None:
    (problem,) = problems(COMPLETE | changes)

    assert problem.startswith(sentence)


@pytest.mark.parametrize(
    "url",
    [
        "https://[bad",
        "https://reg.example.org:port",
        "https://reg.example.org:70000",
        "https://reg.example.org:0",
        "https://reg.example.org:",
        "https://",
        "https:reg.example.org",
        "reg.example.org",
        "ftp://reg.example.org",
        "https://reg.example.org/path",
        "https://reg.example.org//",
        "https://reg.example.org?query",
        "https://reg.example.org/?",
        "https://reg.example.org#fragment",
        "https://user:password@reg.example.org",
        "https://@reg.example.org",
        "https://r\u00e9g.example.org",
        "https://reg example.org",
        "https://reg.exam\nple.org",
        "https://reg.example.org\\x",
        'https://reg.example.org"><b>',
    ],
)
def test_what_would_break_every_link_is_no_public_url(url: str) -> None:
    for development in (False, True):
        (problem,) = problems(COMPLETE | {"PUBLIC_URL": url}, development=development)
        assert problem.startswith("PUBLIC_URL must be a URL such as https://reg.example.org")


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        ("https://reg.example.org/", "https://reg.example.org"),
        ("HTTPS://Reg.example.org:8443", "https://Reg.example.org:8443"),
        ("https://192.0.2.1", "https://192.0.2.1"),
        ("https://[2001:db8::1]:443/", "https://[2001:db8::1]:443"),
    ],
)
def test_the_public_url_is_the_beginning_of_links(url: str, taken: str) -> None:
    read = config.read(COMPLETE | {"PUBLIC_URL": url})

    assert taken == read.PUBLIC_URL
    assert factories.letterhead(public_url=read.PUBLIC_URL).link(None) == f"{taken}/opt-out/test"
    assert problems(COMPLETE | {"PUBLIC_URL": url.lower().replace("https", "http", 1)}) == [
        "PUBLIC_URL must begin with https://."
    ]


def test_links_in_the_mails_of_development_lead_to_its_own_port() -> None:
    assert config.read({"PORT": "5055"}, development=True).PUBLIC_URL == "http://127.0.0.1:5055"
    assert config.read({"PUBLIC_URL": "http://localhost:1"}, development=True).PUBLIC_URL == "http://localhost:1"
