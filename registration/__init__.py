"""OpenEMR Product Registration: the only module that sees everything, and puts it together."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import TextIO

from alembic.script import ScriptDirectory
from flask import Flask
from flask_migrate import Migrate
from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.orm import sessionmaker
from werkzeug.middleware.proxy_fix import ProxyFix

import logger
from config import WEB_CONNECTIONS, WEB_THREADS, Config

from . import cli, event_queue, registrations_cli, services
from .counting import ConfirmedCount
from .db import AUTOCOMMIT, QUICK_SECONDS, ROWS, close_session, db, engine_options
from .domains import Domains, MailServers
from .event_queue import RECEIVERS, EventQueue
from .flow import MOST_IN_FLIGHT
from .limits import Limits
from .mailers import Mailer
from .mailers.letters import Letterhead
from .mailers.outbox import OutboxMailer
from .mailers.ses import SesMailer, make_client
from .outage import Outage
from .registrations import Registrar
from .sender import Sender
from .services import Services
from .tokens import Tokens
from .web import api, bodies, control, deliveries, errors, headers, health, installations, optout, request_log

LARGEST_BODY = 512 * 1024
MIGRATIONS = Path(__file__).parent / "migrations"
ROOT = Path(__file__).parent.parent
"""Where relative paths in the settings begin, wherever the service was started."""


def create_application(config: Config, *, log_to: TextIO | None = None) -> Flask:
    """Build the WSGI application, which logs to a stream (standard output when None) and to LOG_FILE."""
    logger.configure(log_to or sys.stdout, ROOT / config.LOG_FILE, readable=config.DEVELOPMENT)
    application = Flask(__name__, instance_path=str(ROOT), static_folder=None)
    application.url_map.merge_slashes = False
    application.ensure_sync = lambda func: func  # type: ignore[method-assign]  # nothing is async; to look costs 5 µs
    application.json.sort_keys = False  # type: ignore[attr-defined]
    application.config.from_object(config)
    application.config.update(MAX_CONTENT_LENGTH=LARGEST_BODY, MAX_FORM_MEMORY_SIZE=LARGEST_BODY)
    _set_up_database(application, config.DB_CONN_STR)
    _create_services(application, config).init_app(application)
    request_log.init_app(application)
    headers.init_app(application)
    bodies.init_app(application)
    errors.init_app(application)
    optout.init_app(application)
    for module in (api, control, deliveries, health, installations, optout):
        application.register_blueprint(module.bp)
    application.cli.add_command(cli.broadcast)
    application.cli.add_command(registrations_cli.registrations_group)
    if config.TRUSTED_PROXIES:
        application.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            application.wsgi_app, x_for=config.TRUSTED_PROXIES
        )
    return application


def _set_up_database(application: Flask, url: str) -> None:
    """Make the connection pools, see `db`."""
    if is_file := url.startswith("sqlite"):
        (ROOT / (make_url(url).database or "")).parent.mkdir(parents=True, exist_ok=True)
    application.config.update(
        SQLALCHEMY_ENGINE_OPTIONS=engine_options(url, pool_size=WEB_CONNECTIONS),
        SQLALCHEMY_BINDS={
            AUTOCOMMIT: engine_options(url, pool_size=WEB_CONNECTIONS, autocommit=True, seconds=QUICK_SECONDS),
            ROWS: engine_options(url, pool_size=1, reset_on_return=False, seconds=QUICK_SECONDS),
        },
    )
    db.init_app(application)
    application.teardown_appcontext(close_session)
    with application.app_context():
        outage = Outage()
        for engine in () if is_file else db.engines.values():
            outage.watch(engine, ping=engine is db.engine)
    Migrate(application, db, directory=str(MIGRATIONS))


def _create_services(application: Flask, config: Config) -> Services:
    with application.app_context():
        engine, autocommit, rows = db.engine, db.engines[AUTOCOMMIT], db.engines[ROWS]
    tokens = Tokens([key.strip() for key in config.TOKEN_KEYS.split(",")], config.PUBLIC_URL)
    return Services(
        tokens=tokens,
        registrar=Registrar(autocommit, rows, tokens=tokens, most=WEB_THREADS, confirm=config.CONFIRM_REGISTRATIONS),
        confirmed_count=ConfirmedCount(engine),
        limits=Limits(
            per_network=config.REGISTRATIONS_PER_NETWORK,
            altogether=config.REGISTRATIONS_PER_MINUTE,
            storage=config.RATE_LIMIT_STORAGE,
        ),
        domains=Domains(
            allow_reserved=config.ALLOW_RESERVED_DOMAINS,
            allow_disposable=config.ALLOW_DISPOSABLE_DOMAINS,
            mail_servers=MailServers() if config.CHECK_MX else None,
        ),
        migrations=ScriptDirectory(str(MIGRATIONS)),
        rate_limit=config.SENDING_RATE or math.inf,
        wake=_prepare_engine(application),
        mailer=cache(lambda: _create_mailer(application)),
        sender_engine=cache(lambda: _create_sender_engine(application)),
    )


def _prepare_engine(application: Flask) -> Callable[[], None]:
    """Return what to call when there is something new to send; a sender of our own looks by itself."""
    settings = application.config
    if settings["ENGINE"] != "celery":
        return lambda: None
    from . import event_tasks, tasks  # noqa: PLC0415  their packages are optional

    celery = tasks.create_celery(
        settings["CELERY_BROKER_URL"], settings["SES_REGION"], lambda: create_sender(application)
    )
    application.extensions["celery"] = celery
    if settings["FEEDBACK_QUEUE_URL"]:
        event_tasks.add_to(celery, lambda: create_event_queue(application))
    # Not in the caller's thread: a request does not wait for a queue that is away.
    return lambda: threading.Thread(target=tasks.wake, args=(celery,), name="wake").start()


def create_sender(application: Flask) -> Sender:
    """Build what sends the broadcasts of this application."""
    settings = application.config
    return Sender(
        sessions=sessionmaker(services.of(application).sender_engine()),
        mailer=services.of(application).mailer(),
        rate_limit=services.of(application).rate_limit,
        ip_retention=timedelta(days=settings["IP_RETENTION_DAYS"]),
        tokens=services.of(application).tokens,
    )


def create_event_queue(application: Flask) -> EventQueue:
    """Build what takes the mail service's events, to be run only where FEEDBACK_QUEUE_URL is set."""
    settings = application.config
    keys = settings["AWS_ACCESS_ID"], settings["AWS_SECRET_KEY"]
    return EventQueue(
        sessions=sessionmaker(services.of(application).sender_engine()),
        connect=partial(event_queue.make_client, settings["SES_REGION"], *keys),
        url=settings["FEEDBACK_QUEUE_URL"],
        sample=settings["CIRCUIT_BREAKER_SAMPLE"],
    )


def _create_sender_engine(application: Flask) -> Engine:
    """Build an engine with the connections that a sender uses at once, without the web's round trips of caution."""
    with application.app_context():
        url = db.engine.url.render_as_string(hide_password=False)
    engine = create_engine(**engine_options(url, pool_size=MOST_IN_FLIGHT + 2 + RECEIVERS, reset_on_return=False))
    if engine.dialect.name != "sqlite":
        Outage().watch(engine)
    return engine


def _create_mailer(application: Flask) -> Mailer:
    settings = application.config
    letterhead = Letterhead(
        sender=settings["SES_SENDER"],
        public_url=settings["PUBLIC_URL"],
        opt_out_url=services.of(application).tokens.opt_out_url,
        sender_name=settings["SES_SENDER_NAME"],
        reply_to=settings["SES_REPLY_TO"],
        postal_address=settings["POSTAL_ADDRESS"],
    )
    if settings["MAILER"] == "outbox":
        return OutboxMailer(ROOT / settings["OUTBOX_DIRECTORY"], letterhead)
    connect = partial(make_client, settings["SES_REGION"], settings["AWS_ACCESS_ID"], settings["AWS_SECRET_KEY"])
    return SesMailer(connect, letterhead, settings["SES_CONFIGURATION_SET"])
