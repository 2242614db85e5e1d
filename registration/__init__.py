"""OpenEMR Product Registration: the only module that sees everything, and puts it together."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from alembic.script import ScriptDirectory
from flask import Flask
from flask_migrate import Migrate
from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.orm import sessionmaker
from werkzeug.middleware.proxy_fix import ProxyFix

import logger
from config import WEB_THREADS, Config

from . import cli
from .db import AUTOCOMMIT, db, engine_options, fail_fast
from .mailers import Mailer
from .mailers.outbox import OutboxMailer
from .mailers.ses import SesMailer, make_client
from .sender import MOST_IN_FLIGHT, Sender
from .web import api, control, deliveries, errors, health, request_log

LARGEST_BODY = 512 * 1024
MIGRATIONS = Path(__file__).parent / "migrations"
ROOT = Path(__file__).parent.parent
"""Where relative paths in the settings begin, wherever the service was started."""


def create_application(config: Config, *, log_to: TextIO | None = None) -> Flask:
    """Build the WSGI application, which logs to a stream (standard output when None) and to LOG_FILE."""
    logger.configure(log_to or sys.stdout, ROOT / config.LOG_FILE, readable=config.DEVELOPMENT)
    application = Flask(__name__, instance_path=str(ROOT), static_folder=None)
    application.url_map.merge_slashes = False
    application.json.sort_keys = False  # type: ignore[attr-defined]
    application.config.from_object(config)
    application.config.update(
        MAX_CONTENT_LENGTH=LARGEST_BODY,
        MAX_FORM_MEMORY_SIZE=LARGEST_BODY,
        SQLALCHEMY_ENGINE_OPTIONS=engine_options(config.DB_CONN_STR, pool_size=WEB_THREADS),
        SQLALCHEMY_BINDS={
            AUTOCOMMIT: engine_options(config.DB_CONN_STR, pool_size=WEB_THREADS, autocommit=True),
        },
    )
    if (file := make_url(config.DB_CONN_STR).database) and config.DB_CONN_STR.startswith("sqlite"):
        (ROOT / file).parent.mkdir(parents=True, exist_ok=True)
    db.init_app(application)
    if not config.DB_CONN_STR.startswith("sqlite"):
        with application.app_context():
            for engine in db.engines.values():
                fail_fast(engine)
    Migrate(application, db, directory=str(MIGRATIONS))
    application.extensions["schema_heads"] = ScriptDirectory(str(MIGRATIONS)).get_heads()
    request_log.init_app(application)
    errors.init_app(application)
    for module in (api, control, deliveries, health):
        application.register_blueprint(module.bp)
    application.cli.add_command(cli.broadcast)
    application.extensions["wake"] = _prepare_engine(application)
    application.extensions["sender_engine"] = cache(lambda: _create_sender_engine(application))
    application.extensions["mailer"] = cache(lambda: _create_mailer(application.config))
    if config.TRUSTED_PROXIES:
        application.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            application.wsgi_app, x_for=config.TRUSTED_PROXIES
        )
    return application


def _prepare_engine(application: Flask) -> Callable[[], None]:
    """Return what to call when there is something new to send; a sender of our own looks by itself."""
    settings = application.config
    if settings["ENGINE"] != "celery":
        return lambda: None
    from . import tasks  # noqa: PLC0415  its packages are optional

    celery = tasks.create_celery(
        settings["CELERY_BROKER_URL"], settings["SES_REGION"], lambda: create_sender(application)
    )
    application.extensions["celery"] = celery
    # Not in the caller's thread: a request does not wait for a queue that is away.
    return lambda: threading.Thread(target=tasks.wake, args=(celery,), name="wake").start()


def create_sender(application: Flask) -> Sender:
    """Build what sends the broadcasts of this application."""
    settings = application.config
    return Sender(
        sessions=sessionmaker(application.extensions["sender_engine"]()),
        mailer=application.extensions["mailer"](),
        rate_limit=settings["SENDING_RATE"] or math.inf,
        ip_retention=timedelta(days=settings["IP_RETENTION_DAYS"]),
    )


def _create_sender_engine(application: Flask) -> Engine:
    """Build an engine with a connection for each of a sender's threads, without the web's round trips of caution."""
    with application.app_context():
        url = db.engine.url.render_as_string(hide_password=False)
    return create_engine(**engine_options(url, pool_size=MOST_IN_FLIGHT + 2, careful=False))


def _create_mailer(settings: Mapping[str, Any]) -> Mailer:
    if settings["MAILER"] == "outbox":
        return OutboxMailer(ROOT / settings["OUTBOX_DIRECTORY"], settings["SES_SENDER"])
    client = make_client(settings["SES_REGION"], settings["AWS_ACCESS_ID"], settings["AWS_SECRET_KEY"])
    return SesMailer(client, settings["SES_SENDER"], settings["SES_CONFIGURATION_SET"])
