"""Every setting of the service: name, type, default and meaning.

Settings are environment variables, read once by `read`, which reports everything that is wrong in one message.
README.md has the same table; a test compares the two.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from email_validator import EmailNotValidError, validate_email
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

DEVELOPMENT_PIN = "development-pin"
DEVELOPMENT_KEY = "development-key-that-everybody-can-read"
SHORTEST_KEY = 32
SHORTEST_PIN = 8
WEB_THREADS = 8
"""Threads of one gunicorn worker."""
WEB_CONNECTIONS = 8
"""Connections in each of the two larger of its three pools, see `registration/db.py`. No more than threads:
registrations share the one connection of the third pool, and a broadcast request that waits for its end holds none."""

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}
_HOST_AND_PORT = re.compile(r"([a-z0-9]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.IGNORECASE)
_DRIVERS = {"mysql": "mysql+pymysql", "mariadb": "mysql+pymysql", "mariadb+pymysql": "mysql+pymysql"}


class ConfigurationError(Exception):
    """The settings are incomplete or wrong; the message names every one of them."""


def setting(
    default: Any,
    meaning: str,
    *,
    development: Any = None,
    required: str = "",
    minimum: float | None = None,
    maximum: float = math.inf,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a setting.

    `development` is the default under `--dev` where it differs. `required` says when production cannot do
    without it. `minimum` and `maximum` bound numbers; `choices` lists the only values allowed.
    """
    return field(
        default=default,
        metadata={
            "meaning": meaning,
            "development": default if development is None else development,
            "required": required,
            "minimum": minimum,
            "maximum": maximum,
            "choices": choices,
        },
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings, by the names of their environment variables."""

    DB_CONN_STR: str = setting(
        "",
        "Where the database is, as an SQLAlchemy URL, such as `mysql+pymysql://user:password@host/registration`.",
        development="sqlite:///var/registration.db",
        required="always",
    )
    SECRET_PIN: str = setting(
        "",
        f"What a board member proves the right to broadcast with; at least {SHORTEST_PIN} characters.",
        development=DEVELOPMENT_PIN,
        required="always",
    )
    PUBLIC_URL: str = setting(
        "",
        "Where people reach the service, such as `https://reg.example.org`; links in mails begin with it.",
        development="http://127.0.0.1:5000",
        required="always",
    )
    TOKEN_KEYS: str = setting(
        "",
        f"What signs the links in mails: keys of at least {SHORTEST_KEY} characters, the newest last, with commas.",
        development=DEVELOPMENT_KEY,
        required="always",
    )
    CONFIRM_REGISTRATIONS: bool = setting(
        default=False,
        meaning="Whether a new registration gets broadcasts only after a click in a confirmation mail.",
    )
    MAILER: str = setting(
        "ses",
        "How mail leaves: `ses` (Amazon SES) or `outbox` (one .eml file per recipient, nothing is sent).",
        development="outbox",
        choices=("ses", "outbox"),
    )
    SES_REGION: str = setting(
        "", "AWS region of the SES account, such as `us-east-1`.", required="with MAILER=ses", development="us-east-1"
    )
    SES_SENDER: str = setting(
        "",
        "From address of every mail; SES must have verified it or its domain.",
        required="always",
        development="registration@localhost.localdomain",
    )
    SES_SENDER_NAME: str = setting("OpenEMR", "The name beside the From address; up to 60 characters.")
    SES_REPLY_TO: str = setting("", "Where answers to a mail go; empty for the From address.")
    POSTAL_ADDRESS: str = setting(
        "", "Postal address of the non-profit, at the end of every mail; the law of many countries asks for one."
    )
    SES_CONFIGURATION_SET: str = setting("", "SES configuration set of every mail; empty for none.")
    FEEDBACK_QUEUE_URL: str = setting(
        "",
        "URL of the Amazon SQS queue in SES_REGION from which bounces, complaints and deliveries are taken; "
        "empty to take none.",
    )
    CIRCUIT_BREAKER_SAMPLE: int = setting(
        500,
        "Accepted messages from which on a broadcast pauses by itself at 4 % of hard bounces or 0.08 % of complaints; "
        "0 for never.",
        minimum=0,
    )
    AWS_ACCESS_ID: str = setting("", "AWS access key; empty for boto3's own chain, such as an instance profile.")
    AWS_SECRET_KEY: str = setting("", "AWS secret key; set together with AWS_ACCESS_ID.")
    SENDING_RATE: float = setting(
        0.0, "Recipients a second at most; 0 for the rate SES grants the account.", minimum=0.0
    )
    ENGINE: str = setting(
        "sender",
        "Who sends: `sender` (this service's own process, one an instance) or `celery` (workers on any machine).",
        choices=("sender", "celery"),
    )
    CELERY_BROKER_URL: str = setting(
        "",
        "Where Celery's queue is, such as `rediss://:password@host:6379/0`, or `sqs://` in SES_REGION.",
        required="with ENGINE=celery",
    )
    OUTBOX_DIRECTORY: str = setting("var/outbox", "Where MAILER=outbox puts its files.")
    BROADCAST_WAIT_SECONDS: float = setting(
        45.0,
        "How long a broadcast request waits for its end before it answers 202, at most 50; 0 to answer at once.",
        minimum=0.0,
        maximum=50,
    )
    IP_RETENTION_DAYS: int = setting(
        90,
        "Days after which a registration's IP address is forgotten; 0 to forget it within the hour.",
        minimum=0,
        maximum=36500,
    )
    INSTALLATION_MAX_AGE_DAYS: int = setting(
        0,
        "Days after which an installation that was not seen again no longer tells a version; 0 for never.",
        minimum=0,
        maximum=36500,
    )
    REGISTRATIONS_PER_NETWORK: int = setting(
        30,
        "Registrations a minute that one web process takes from one network (IPv4 /24, IPv6 /56); 0 for no limit.",
        minimum=0,
    )
    REGISTRATIONS_PER_MINUTE: int = setting(
        600, "Registrations a minute that one web process takes altogether; 0 for no limit.", minimum=0
    )
    RATE_LIMIT_STORAGE: str = setting(
        "",
        "Redis in which all processes count registrations together, such as `redis://host:6379/1`; "
        "empty to count in each process.",
    )
    ALLOW_RESERVED_DOMAINS: bool = setting(
        default=False,
        meaning="Whether addresses at `example.org`, `example.com` and `example.net` are taken, for tests.",
        development=True,
    )
    ALLOW_DISPOSABLE_DOMAINS: bool = setting(
        default=False, meaning="Whether addresses at services of throw-away mailboxes are taken."
    )
    CHECK_MX: bool = setting(
        default=False, meaning="Whether to ask the DNS if an address's domain takes mail; no answer refuses nobody."
    )
    TRUSTED_PROXIES: int = setting(
        0,
        "How many proxies in front append to X-Forwarded-For: none, nginx alone (1), a load balancer and nginx (2).",
        minimum=0,
    )
    LOG_FILE: str = setting(
        "/opt/python/log/openemr-product-registration.log",
        "Where log lines go besides standard output; skipped when it cannot be written.",
        development="logger/dev.log",
    )
    PORT: int = setting(5000, "Port of the development server.", minimum=1, maximum=65535)
    DEVELOPMENT: bool = setting(
        default=False,
        meaning="Development defaults for all of the above; "
        "`python application.py --dev` sets it. Never in production.",
    )


def read(environment: Mapping[str, str] | None = None, *, development: bool | None = None) -> Config:
    """Read the settings from `environment` (the process's own when None).

    `development` overrides the DEVELOPMENT variable. Raises ConfigurationError naming all that is wrong.
    """
    environment = os.environ if environment is None else environment
    problems: list[str] = []
    if development is None:
        development = _parse("DEVELOPMENT", environment.get("DEVELOPMENT", "").strip() or "false", bool, problems)
    values: dict[str, Any] = {"DEVELOPMENT": development}
    for declared in fields(Config):
        if declared.name not in values:
            text = environment.get(declared.name, "").strip()
            default = declared.metadata["development"] if development else declared.default
            values[declared.name] = _read_one(declared, text, default, problems)
    if development and not environment.get("PUBLIC_URL", "").strip():
        values["PUBLIC_URL"] = f"http://127.0.0.1:{values['PORT']}"
    config = Config(**values)
    problems += _contradictions(config)
    if problems:
        raise ConfigurationError(
            "The service cannot start. Set these environment variables:\n" + "\n".join(f"- {p}" for p in problems)
        )
    return config


def _read_one(declared: Any, text: str, default: Any, problems: list[str]) -> Any:
    if not text:
        return default
    value = _parse(declared.name, text, type(declared.default), problems)
    minimum, maximum, choices = (declared.metadata[name] for name in ("minimum", "maximum", "choices"))
    if minimum is not None and value is not None and not minimum <= value <= min(maximum, sys.float_info.max):
        limit = "or more" if math.isinf(maximum) else f"to {maximum}"
        problems.append(f"{declared.name} must be {minimum:g} {limit}.")
    if choices and value not in choices:
        problems.append(f"{declared.name} must be one of: {', '.join(choices)}.")
    if declared.name == "DB_CONN_STR":
        return _database_url(text, problems)
    if declared.name == "PUBLIC_URL":
        return _public_url(text, problems)
    if declared.name in {"SES_SENDER", "SES_REPLY_TO"} and not _is_address(text):
        problems.append(f"{declared.name} must be an e-mail address.")
    longest = {"SES_SENDER_NAME": 60, "POSTAL_ADDRESS": 256}.get(declared.name)
    if longest and (len(text) > longest or not text.isprintable()):
        problems.append(f"{declared.name} must be one printable line of up to {longest} characters.")
    return value


def _parse(name: str, text: str, kind: type, problems: list[str]) -> Any:
    parsers: dict[type, tuple[Callable[[str], Any], str]] = {
        str: (str, "text"),
        int: (int, "a whole number"),
        float: (float, "a number"),
        bool: (_boolean, "true or false"),
    }
    parse, description = parsers[kind]
    try:
        return parse(text)
    except ValueError:
        problems.append(f"{name} must be {description}.")
        return None


def _boolean(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise ValueError(text)


def _is_address(text: str) -> bool:
    try:
        return bool(validate_email(text, check_deliverability=False, allow_smtputf8=False))
    except EmailNotValidError:
        return False


def _database_url(text: str, problems: list[str]) -> str:
    """Return the URL with PyMySQL as the driver of MySQL and MariaDB alike."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        problems.append("DB_CONN_STR must be a URL such as mysql+pymysql://user:password@host/registration.")
        return text
    driver = _DRIVERS.get(url.drivername, url.drivername)
    if driver not in {"mysql+pymysql", "sqlite"}:
        problems.append("DB_CONN_STR must begin with mysql+pymysql:// or sqlite:///.")
    if not url.database:
        problems.append("DB_CONN_STR must name the database at its end.")
    return url.set(drivername=driver).render_as_string(hide_password=False)


def _public_url(text: str, problems: list[str]) -> str:
    """Return the URL with its scheme in lower case and without a slash at its end.

    Links in mails are this and a path: whatever else it held would break all of them, and only then be noticed.
    """
    bare = text.removesuffix("/")
    try:
        parts = urlsplit(bare)
        url = f"{parts.scheme}://{parts.netloc}"
        is_usable = parts.scheme in {"http", "https"} and parts.port != 0 and _HOST_AND_PORT.fullmatch(parts.netloc)
    except ValueError:
        is_usable = None
    if not is_usable or url.lower() != bare.lower():
        problems.append("PUBLIC_URL must be a URL such as https://reg.example.org: a host in ASCII, and no path.")
        return text
    return url


def _contradictions(config: Config) -> list[str]:
    """Say what is missing or unsafe in settings that are well formed one by one."""
    problems = _missing(config) + ([] if config.DEVELOPMENT else _weaknesses(config))
    if config.ENGINE == "celery" and find_spec("celery") is None:
        problems.append("ENGINE=celery needs more packages: pip install -r requirements-celery.txt")
    if config.RATE_LIMIT_STORAGE and not _is_redis(config.RATE_LIMIT_STORAGE):
        problems.append("RATE_LIMIT_STORAGE must be a URL such as redis://host:6379/1, or begin with rediss://.")
    elif config.RATE_LIMIT_STORAGE and find_spec("redis") is None:
        problems.append("RATE_LIMIT_STORAGE needs the package redis: pip install -r requirements-celery.txt")
    if config.FEEDBACK_QUEUE_URL and not config.FEEDBACK_QUEUE_URL.startswith(("https://", "http://")):
        problems.append("FEEDBACK_QUEUE_URL must be the URL of a queue, beginning with https://.")
    if config.FEEDBACK_QUEUE_URL and not config.SES_REGION:
        problems.append("FEEDBACK_QUEUE_URL needs SES_REGION, the region that the queue is in.")
    if bool(config.AWS_ACCESS_ID) != bool(config.AWS_SECRET_KEY):
        problems.append("AWS_ACCESS_ID and AWS_SECRET_KEY go together: set both or neither.")
    return problems


def _is_redis(text: str) -> bool:
    try:
        parts = urlsplit(text)
        is_usable = parts.scheme in {"redis", "rediss"} and parts.hostname and parts.port != 0
        return bool(is_usable and re.fullmatch(r"/?[0-9]*", parts.path))
    except ValueError:
        return False


def _missing(config: Config) -> list[str]:
    needed = {"always", f"with MAILER={config.MAILER}", f"with ENGINE={config.ENGINE}"}
    return [
        f"{declared.name} is missing. {declared.metadata['meaning']}"
        for declared in fields(Config)
        if declared.metadata["required"] in needed and not getattr(config, declared.name)
    ]


def _weaknesses(config: Config) -> list[str]:
    problems = _weaknesses_of_pin(config.SECRET_PIN)
    if config.PUBLIC_URL.startswith("http://"):
        problems.append("PUBLIC_URL must begin with https://.")
    keys = [key.strip() for key in config.TOKEN_KEYS.split(",")]
    if DEVELOPMENT_KEY in keys:
        problems.append("TOKEN_KEYS holds the development key, which everybody can read. Choose another.")
    if config.TOKEN_KEYS and min(map(len, keys)) < SHORTEST_KEY:
        problems.append(f"TOKEN_KEYS must hold keys of at least {SHORTEST_KEY} characters, with commas between them.")
    return problems


def _weaknesses_of_pin(pin: str) -> list[str]:
    if pin == DEVELOPMENT_PIN:
        return ["SECRET_PIN is the development pin, which everybody can read. Choose another."]
    if pin and len(pin) < SHORTEST_PIN:
        return [f"SECRET_PIN must have at least {SHORTEST_PIN} characters."]
    return []
